"""The coordinator: who is in a run, in which order, by which plan. Tensor bytes never pass through it."""
