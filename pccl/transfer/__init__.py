"""Named byte ranges that a peer offers and others fetch: `comm.transfers`.

    offer = comm.transfers.offer("weights", tensor, generation=7)      # on the peers that have it
    fetch = comm.transfers.fetch("weights", into=mine, sources=peers)  # on one that wants it
    fetch.wait()

or the other way round, `transfers.accept("weights", into=mine)` here and `transfers.push("weights", tensor, to=peer)`
there.

Bytes travel over the links of the collectives, from several sources at once, verified chunk by chunk. What travels is
in docs/protocol.md, what decides in manifest.py, lookup.py and schedule.py (pure), job.py (one fetch; no thread),
push.py (one push), accept.py and
receipt.py (what is pushed, and to whom), worker.py (the thread), offers.py (memory that is lent).
"""

from pccl.transfer.fetch import Fetch, FetchResult, Progress
from pccl.transfer.job import TransferReport
from pccl.transfer.offers import Offer
from pccl.transfer.push import Push, PushResult
from pccl.transfer.transfers import Transfers

__all__ = ["Fetch", "FetchResult", "Offer", "Progress", "Push", "PushResult", "TransferReport", "Transfers"]
