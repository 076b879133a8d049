"""Named bytes that a peer offers and others fetch."""
