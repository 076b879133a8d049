"""KV caches across datacenters: blocks of paged caches move between peers of a run, verified, within a deadline.

    pool = pccl.kv.register(comm, layout, buffers)             # on both sides
    receive = pool.prep_recv("request", blocks, deadline=5.0)  # where they are wanted; receive.ticket goes over there
    send = pool.open_send(ticket, blocks)                      # where they are
    send.layer_ready("L0"); ...; send.finish()
    receive.wait()

What travels is in docs/kv.md.
"""

from pccl.kv.ends import End, EndError, State, TicketUsed, TransferAborted, TransferExpired, TransferFailed
from pccl.kv.errors import LayoutMismatch
from pccl.kv.handles import Offered, Receive, Received, Send, Sent
from pccl.kv.layout import Group, Layout
from pccl.kv.pool import Pool, register

__all__ = [
    "End",
    "EndError",
    "Group",
    "Layout",
    "LayoutMismatch",
    "Offered",
    "Pool",
    "Receive",
    "Received",
    "Send",
    "Sent",
    "State",
    "TicketUsed",
    "TransferAborted",
    "TransferExpired",
    "TransferFailed",
    "register",
]
