"""Do the low-communication optimizers of pccl.optim learn, and what do they send? Real peers on a small exact task."""
