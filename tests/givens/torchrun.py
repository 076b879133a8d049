import os

import torch
from torch import nn

# What torchrun sets for its processes; here for one.
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
os.environ |= {"LOCAL_RANK": "0"}
torch.manual_seed(0)
model = nn.Linear(4, 2)
