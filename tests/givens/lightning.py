"""What docs/howto/frameworks.md takes as given: a LightningModule and its data."""

import pytorch_lightning
import torch

import pccl


class Module(pytorch_lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(8, 1)

    def training_step(self, x, number):
        return (self.net(x) - x.sum(1, keepdim=True)).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


module, data = Module(), torch.utils.data.DataLoader(torch.randn(400, 8), batch_size=4)
