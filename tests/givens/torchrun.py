"""What docs/torch.md takes as given: the environment that torchrun makes, here for one process; a model."""

import os

import torch
from torch import nn

os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
torch.manual_seed(0)
model = nn.Linear(4, 2)
