"""Tensors of accelerators: staged through pinned host memory, by pieces, while the network is busy; `docs/torch.md`.

Nothing here is imported before a program passes a tensor that is not in host memory, and torch.cuda is not touched
before that either.
"""
