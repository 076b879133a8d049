"""Shared state: `sync_state` makes named tensors and scalars equal on all peers, `join_state` is a joiner's start.

    report = comm.sync_state({"weights": w, "momentum": m, "step": step})    # every peer, at the top of a round
    print(report)                                                            # what differed, and where

Only chunks that differ move, from all who hold the right ones at once, over `comm.transfers`. Which files decide what:
scalars.py and chunks.py (values and memory as bytes and digests), content.py (what this peer holds), election.py (who
is right), staging.py (what is wanted and where it goes), rounds.py (a call of sync_state), prefetch.py, forecast.py
and join.py (a joiner's), depot.py (what stays on offer), report.py (what is said in the end).
"""

from pccl.sharing.election import Strategy
from pccl.sharing.join import join_state
from pccl.sharing.prefetch import PrefetchReport, prefetch_state
from pccl.sharing.report import Difference, SyncReport
from pccl.sharing.rounds import sync_state

__all__ = ["Difference", "PrefetchReport", "Strategy", "SyncReport", "join_state", "prefetch_state", "sync_state"]
