"""A double of verl.checkpoint_engine, by its documentation."""
