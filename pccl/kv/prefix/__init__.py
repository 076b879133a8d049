"""Which cluster has the KV cache of which prefix: an index fed by events, and what keeps it true."""
