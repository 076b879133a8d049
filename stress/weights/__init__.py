"""What do deltas of weights cost, in bytes and in time? Traces of real training, and tables beside what others send."""
