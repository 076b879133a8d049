"""A part of the double of verl."""
