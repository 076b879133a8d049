"""Low-communication optimizers: DiLoCo and its family over a pccl communicator.

    opt = pccl.optim.DiLoCo(torch.optim.AdamW(model.parameters()), model, comm, every=500)

`DiLoCo` wraps an inner optimizer, `DiLoCo.attach` follows one that a trainer owns; `LocalComm(n)` simulates n replicas
in one process. Needs torch (`pip install pccl[torch]`). Which files decide what: settings.py (what arguments mean),
fragments.py (which parameters travel when), master.py (outer parameters and their optimizer), exchange.py (how deltas
become a mean), modes.py (what is done with it), flights.py and gossip.py (rounds of all, of two), engine.py (when,
newcomers, failures), shards.py (FSDP2), checkpoint.py, trainer.py and lightning.py (what trainers with callbacks need
besides).
"""

from pccl.optim.averages import recommended
from pccl.optim.diloco import DiLoCo
from pccl.optim.gossip import Mixing
from pccl.optim.lightning import LightningHooks
from pccl.optim.local import LocalComm
from pccl.optim.outer import Average, ClippedMomentum, HeavyBall, Nesterov
from pccl.optim.stats import Round, Stats
from pccl.optim.trainer import TrainerHooks

__all__ = [
    "Average",
    "ClippedMomentum",
    "DiLoCo",
    "HeavyBall",
    "LightningHooks",
    "LocalComm",
    "Mixing",
    "Nesterov",
    "Round",
    "Stats",
    "TrainerHooks",
    "recommended",
]
