"""pool.py - `Pool`, a registered cache: what users call. Checks here, does on the thread of transfers (exchange.py)."""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from pccl.errors import ArgumentError, Closed, HungError, PcclError
from pccl.kv import messages as m
from pccl.kv.binding import tags
from pccl.kv.choice import Offer, Path, check_wish, choose, settle
from pccl.kv.codecs import CODECS
from pccl.kv.convert import Match, match
from pccl.kv.ends import End, State, TicketUsed
from pccl.kv.errors import LayoutMismatch
from pccl.kv.estimator import Estimate
from pccl.kv.exchange import Counters, Exchange
from pccl.kv.handles import Offered, Receive, Send
from pccl.kv.inbound import Inbound, Wish
from pccl.kv.layout import Layout
from pccl.kv.leases import BYTES_PER_PEER, HOLD_S, LEASE_S, Lease, Leases
from pccl.kv.ledger import Ledger
from pccl.kv.memory import Ids, Memory
from pccl.kv.outbound import Outbound, needed, per_group
from pccl.kv.post import Post
from pccl.kv.pulls import EARLY_S, Pulls, lease_id
from pccl.kv.schedule import CLASSES
from pccl.kv.send import LEASE_S as SEND_LEASE_S
from pccl.kv.send import Announce, FinishNow, SendUnit, check_meta
from pccl.kv.speed import speeds
from pccl.kv.staging import STAGING_BYTES, Staging
from pccl.kv.surroundings import Surroundings
from pccl.kv.ticket import WANTED_MAX, CodecWish, Priority, Ticket, Wanted
from pccl.transfer.offers import FENCE_S, log
from pccl.transfer.task import Task
from pccl.transfer.transfers import Transfers
from pccl.types import PEER_ID_BYTES

__all__ = ["Pool", "register"]

OnFailure = Literal["fail", "recompute", "hedge"]
Blocks = Mapping[str, Sequence[int] | Ids] | Sequence[int] | Ids
_TICKETS_MAX = 65536
_SECONDS_MAX = 1e9


def register(
    comm: Any,
    layout: Layout,
    buffers: Mapping[str, Any],
    *,
    name: str = "kv",
    pulled_bytes_max: int = BYTES_PER_PEER,
    staging_bytes_max: int = STAGING_BYTES,
    early_s: float = EARLY_S,
) -> Pool:
    """Registers the buffers of a KV cache, so that blocks of it can be sent to and received from pools of other peers.

    `comm`: a Communicator; peers may be of any group of the run. `buffers`: see Memory; nothing is copied, and they are
    kept alive until `Pool.close`. `name`: peers find each other's pools by it; one pool of a name per communicator.
    `pulled_bytes_max`: that one peer may hold by pulls at a time. `staging_bytes_max`: memory that all sends together
    convert into; a send that finds it in use begins when others have ended, or fails with cause "no_space" just before
    its deadline. `early_s`: for which a pull waits for an offer that nobody has made yet, or for `asked`. Raises
    ArgumentError or TypeError that names the argument, or the group and the layer; Closed.
    """
    memory, staging = Memory(layout, buffers), Staging(staging_bytes_max)
    return Pool(comm.transfers, comm.op_timeout, memory, name, pulled_bytes_max, staging, _seconds("early_s", early_s))


class Pool:
    """Made by `register`. Any thread; nothing blocks but `close`, and `wait` of what it gives."""

    def __init__(
        self,
        transfers: Transfers,
        timeout_s: float,
        memory: Memory,
        name: str,
        pulled_bytes_max: int,
        staging: Staging,
        early_s: float,
    ) -> None:
        self.layout, self.name = memory.layout, name
        self._transfers, self._timeout_s, self._memory = transfers, timeout_s, memory
        self._names = [group.name for group in memory.layout.groups]
        self._ledger = Ledger([memory.block_count(at) for at in range(len(self._names))], self._names)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._used: dict[bytes, None] = {}
        self._closing = False
        self._closed = threading.Event()
        names = (name, transfers.peer_id)
        self._post = Post(names, transfers.asks, transfers.offers, transfers.drive, self._tell, time.monotonic)
        self._around = around = Surroundings(transfers)
        self._exchange = Exchange(
            memory, self._ledger, transfers.offers, around, self._post, self._tell, name, time.monotonic, staging
        )
        self._speeds = speeds(self.layout.codec_ok, self.layout.groups)
        self._leases = Leases(pulled_bytes_max)
        self._pulls = Pulls(self._exchange, self._ledger, self._leases, self._pulled, time.monotonic, early_s)
        self._post.told, self._post.lost = self._exchange.told, self._exchange.lost
        self._exchange.on_closed = self._over
        self._exchange.on_sent, self._exchange.on_pull = self._pulls.sent, self._pulls.pulled
        self._exchange.on_tick, self._exchange.on_beat = self._pulls.tick, self._pulls.beat
        self._exchange.on_end, self._exchange.on_lost = self._pulls.ended, self._pulls.lost
        transfers.drive(self._exchange)
        self._post.open()

    @property
    def counters(self) -> Counters:
        """Of transfers that ended, and of what came too late."""
        return self._exchange.counters

    def busy(self, group: str) -> Ids:
        """Ids of the blocks that are part of a transfer: all others are free."""
        return self._ledger.busy(self.layout.group_index[group])

    def estimate(self, peer: bytes) -> Estimate | None:
        """What is known of the link from a peer: by that the pool orders what it asks for, and whoever decides about
        requests had better decide (`Load.bandwidth_bytes_per_s`). None: nothing has come from there yet.
        """
        return self._exchange.estimate(peer)

    # -- receiving --

    def prep_recv(
        self,
        request_id: str,
        blocks: Blocks,
        *,
        deadline: float | None = None,
        priority: Priority = "normal",
        have: Any = None,
        on_failure: OnFailure = "fail",
        hedge_after: float | None = None,
        codec: CodecWish = "auto",
    ) -> Receive:
        """Reserves blocks of this pool for a request; the ticket of the Receive opens the send at whoever has them.

        `blocks`: ids, by the name of the group (flat if there is one group); their order is the positions. `deadline`:
        seconds until it ends, whatever the other side does (default: the communicator's `op_timeout`). `priority`:
        whose bytes come first; within one, the earliest deadline. `have`: of each group {position: hash of the block
        that is there already}: those that the sender knows by the same hash are not sent. `on_failure`: what `wait`
        does when it does not commit: "fail" raises, "recompute" gives a Received that names the missing positions;
        "hedge" the same after `hedge_after` seconds at the latest, while the transfer goes on into these blocks, which
        are not free before `poll()` is terminal: compute into others. `codec`: how blocks may travel. "auto": raw, or
        bf16 without loss in fewer bits, whichever the sender finds to be quicker on this link; "raw"; "bf16": without
        loss wherever that can be, whatever the link; "int8": keys and values in 8 bits, which loses something. One
        side that wants "raw" has it; "int8" takes both, and "bf16" one; all else is "auto".

        Raises ArgumentError (a block out of range, there twice, part of another transfer; an argument is wrong):
        nothing has happened; Closed.
        """
        wish = self._wish(request_id, priority, on_failure, hedge_after, codec)
        return self._receive(wish, blocks, None, deadline, have, codec)

    def pull(
        self,
        peer: bytes,
        request_id: str,
        into: Blocks,
        *,
        first: Mapping[str, int] | int | None = None,
        deadline: float | None = None,
        priority: Priority = "normal",
        have: Any = None,
        on_failure: OnFailure = "fail",
        hedge_after: float | None = None,
        codec: CodecWish = "auto",
    ) -> Receive:
        """Fetches what a peer's pool of this name offers by `request_id`. See `prep_recv`. Fails with cause "gone" if
        it offers no such thing, or not any more.

        `into`: for as many of the offered blocks as are wanted, from number `first` (of each group; 0) on. Whatever is
        left out, the offer is over when this has committed: to want nothing is to release it.
        """
        if not isinstance(peer, bytes) or len(peer) != PEER_ID_BYTES or peer == self._transfers.peer_id:
            raise ArgumentError(f"peer must be the id of another peer, {PEER_ID_BYTES} bytes, not {peer!r}")
        wish = self._wish(request_id, priority, on_failure, hedge_after, codec)
        return self._receive(wish, into, peer, deadline, have, codec, first)

    def _receive(
        self,
        wish: Wish,
        blocks: Blocks,
        peer: bytes | None,
        deadline: float | None,
        have: Any,
        codec: CodecWish,
        first: Any = None,
    ) -> Receive:
        self._check()
        request_id = wish.request_id
        ids = self._ids(blocks)
        seconds = self._seconds("deadline", deadline, self._timeout_s)
        wanted = tuple(
            Wanted(one.size, _have(given, one.size), _first(begin))
            for one, given, begin in zip(
                ids, per_group(have, self._names, "have"), per_group(first, self._names, "first"), strict=True
            )
        )
        transfer = secrets.token_bytes(16)
        own = self._transfers.peer_id
        decodes = {name: decode for name, (_, decode) in self._speeds.items()}
        facts = self.name, request_id, seconds, wish.priority, wanted, self.layout, codec, decodes
        ticket = Ticket(transfer, own, *facts).encode()
        handle = Receive(self, next(self._numbers), transfer, request_id, ticket)
        now = time.monotonic()
        one = Inbound(transfer, self._memory, ids, wish, handle, now, now + seconds, self._exchange.event)
        one.peer = peer
        self._ledger.take(transfer, ids, True)

        def begin() -> None:
            self._exchange.receive(one)
            if peer is not None and one.mail is not None:
                one.mail.say(m.Pull(request_id, ticket))

        self._tell(begin)
        return handle

    # -- sending --

    def open_send(
        self,
        ticket: bytes,
        blocks: Blocks,
        *,
        hashes: Any = None,
        lease: float = SEND_LEASE_S,
        convert: bool = False,
        codec: CodecWish = "auto",
    ) -> Send:
        """Begins to send blocks of this pool to who made the ticket; returns at once.

        `blocks`: ids by the name of the ticket's group, one for each position that it wants, in that order. They may be
        part of other sends. `hashes`: of each group, the hash of the block at each position: what the receiver has by
        the same hash is not sent. `lease`: seconds without a sign of life of the receiver after which it ends.
        `convert`: layouts may differ in what can be converted exactly (tokens of a block, heads); a group that is
        converted takes as many blocks as the receiver's are made of, and memory for its layers, and travels raw.
        `codec`: as of `prep_recv`.

        Raises ArgumentError (a block; counts), LayoutMismatch (the receiver is told), TicketUsed, ProtocolError (no
        ticket), Closed.
        """
        self._check()
        decoded = Ticket.decode(ticket)
        if decoded.peer == self._transfers.peer_id:
            raise ArgumentError("the ticket was made by this very peer")
        if decoded.pool != self.name:
            raise ArgumentError(f"the ticket is for pools named {decoded.pool!r}, this one is {self.name!r}")
        names = [group.name for group in decoded.layout.groups]
        seconds = self._seconds("lease", lease, SEND_LEASE_S)
        wish = check_wish(codec, self.layout)
        with self._lock:
            if decoded.transfer in self._used:
                raise TicketUsed(f"the ticket of {decoded.request!r} has opened a send already")
            given = per_group(blocks, names, "blocks"), per_group(hashes, names, "hashes")
            try:
                one = self._outbound(decoded, *given, seconds, convert, wish)
            except LayoutMismatch as error:
                text = error.message
                self._tell(lambda: self._exchange.refuse(decoded.peer, decoded.transfer, "layout", text))
                raise
            self._used[decoded.transfer] = None
            if len(self._used) > _TICKETS_MAX:
                del self._used[next(iter(self._used))]

        def begin() -> None:
            self._pulls.taken(decoded.transfer)
            self._exchange.send(one)

        self._tell(begin)
        return one.handle

    def asked(self, stem: str) -> dict[str, bytes]:
        """Tickets of the pulls of `STEM/...` that wait here, by these names: for `open_send`, instead of an offer.

        A pull waits for `early_s` (see `register`), its deadline at most; it is here no more once its puller has
        ended it, or is lost. Any thread; does not block.
        """
        return self._pulls.asked(stem)

    def left(self, stem: str) -> str:
        """Why a pull of `STEM/...` that waited here does so no more: its puller has ended it, or is lost. "": none."""
        return self._pulls.left(stem)

    def expect(self, stem: str) -> None:
        """Pulls of `STEM/...` that come from now on wait here again, whatever has been declined, or has left."""
        self._tell(lambda: self._pulls.expect(stem))

    def decline(self, stem: str, why: str) -> None:
        """Pulls of `STEM/...` that wait here or are yet to come fail, with cause "gone", and are told why."""
        self._tell(lambda: self._pulls.decline(stem, why))

    def offer(
        self,
        request_id: str,
        blocks: Blocks,
        *,
        hashes: Any = None,
        meta: bytes = b"",
        lease: float = LEASE_S,
        codec: CodecWish = "auto",
    ) -> Offered:
        """Lets one other peer `pull` these blocks, which must not be written to before the Offered is over: when a pull
        has committed, with `withdraw`, or after `lease` seconds; a pull under way extends it, to 600 s in all.

        `blocks`, `hashes`: by the name of this pool's groups, as of `open_send`. `meta`: as of `Send.finish`. `codec`:
        as of `prep_recv`. Raises ArgumentError (the name is offered already; a block), Closed.
        """
        self._check()
        ids = self._ids(blocks)
        known = self._hashes(per_group(hashes, self._names, "hashes"), [one.size for one in ids], self._names)
        seconds = self._seconds("lease", lease, LEASE_S)
        now = time.monotonic()
        handle = Offered(self, request_id)
        until, most = now + seconds, now + max(HOLD_S, seconds)
        wish = check_wish(codec, self.layout)
        added = Lease(request_id, ids, known, check_meta(meta), handle, until, most, codec=wish)
        with self._lock:
            self._leases.add(added)
            try:
                self._ledger.take(lease_id(request_id), ids, False)
            except ArgumentError:
                self._leases.remove(request_id, "it was never offered")
                raise

        def begin() -> None:
            self._exchange.tick_at(added.until)
            self._pulls.offered(request_id)

        self._tell(begin)
        return handle

    def _outbound(
        self,
        ticket: Ticket,
        blocks: list[Any],
        hashes: list[Any],
        lease_s: float,
        convert: bool,
        codec: CodecWish,
    ) -> Outbound:
        """A send whose blocks are taken."""
        found = match(self.layout, ticket.layout, convert)
        ids = []
        for group, given, wanted in zip(found.groups, blocks, ticket.wanted, strict=True):
            one = self._memory.check(group.group, [] if given is None else given)
            if one.size != group.blocks_needed(wanted.blocks):
                name, count = group.target.name, group.blocks_needed(wanted.blocks)
                raise ArgumentError(f"the ticket wants {count} blocks of {name!r}, given are {one.size}")
            ids.append(one)
        known = self._hashes(
            hashes, [one.blocks for one in ticket.wanted], [group.target.name for group in found.groups]
        )
        tag = [tags(one, wanted.blocks) for one, wanted in zip(known, ticket.wanted, strict=True)]
        handle = Send(self, next(self._numbers), ticket.transfer, ticket.request)
        now = time.monotonic()
        need = needed(ticket, known)
        hashed = [one is not None for one in known]
        codecs = self._codecs(ticket, found, need, codec)
        facts = handle, now, now + ticket.left_s, lease_s
        one_send = Outbound(ticket, self._memory, found, ids, need, tag, hashed, codecs, *facts)
        self._exchange.staging.check(one_send.staging_bytes)
        own: list[Ids] = [np.empty(0, np.int64) for _ in self._names]
        for group, mine in zip(found.groups, ids, strict=True):
            own[group.group] = np.union1d(own[group.group], mine) if own[group.group].size else mine
        self._ledger.take(ticket.transfer, own, False)
        return one_send

    def _codecs(self, ticket: Ticket, found: Match, need: list[Any], wish: CodecWish) -> list[str]:
        """By which each of the receiver's groups travels."""
        settled, now, peer = settle(wish, ticket.codec), time.monotonic(), ticket.peer
        encodes = {name: encode for name, (encode, _) in self._speeds.items() if name in found.codecs}
        offer = Offer(encodes, ticket.decodes)
        rate = self._exchange.told_bytes_per_s.get(peer) or self._around.sends_bytes_per_s(peer)
        packer = self._exchange.packer
        path = Path(0.0 if packer.crowded else rate, self._around.rtt_s(peer))
        codecs = []
        for group, mask in zip(found.groups, need, strict=True):
            target = group.target
            nbytes = int(mask.sum()) * target.bytes_per_block_layer * len(target.layers)
            ratio = packer.ratios.of(group.group, "bf16-exp", now)
            codec = choose(settled, target, nbytes, path, offer, ratio) if group.plain else CODECS["raw"]
            codecs.append(codec.name)
        return codecs

    def _pulled(self, ticket: Ticket, lease: Lease) -> Outbound:
        by_name = dict(zip(self._names, zip(lease.blocks, lease.hashes, strict=True), strict=True))
        found = match(self.layout, ticket.layout)
        ids, known = [], []
        for group, wanted in zip(found.groups, ticket.wanted, strict=True):
            blocks, hashes = by_name[self._names[group.group]]
            part = slice(wanted.first, wanted.first + wanted.blocks)
            ids.append(blocks[part])
            known.append(None if hashes is None else hashes[part])
        one = self._outbound(ticket, ids, known, SEND_LEASE_S, False, lease.codec)
        one.offer = lease.name
        return one

    # -- ends --

    def close(self, timeout: float = FENCE_S) -> None:
        """Ends every transfer and offer; when it returns nothing touches the buffers. Blocks for milliseconds.

        Idempotent. Raises HungError if the engine does not answer within `timeout` seconds: the buffers stay borrowed.
        """
        with self._lock:
            first, self._closing = not self._closing, True

        def step() -> None:
            self._pulls.close()
            self._exchange.close(End(State.FAILED, "closed", "the pool was closed"))
            self._post.close()

        if first:
            self._tell(step)
        if not self._closed.wait(timeout):
            raise HungError(f"pool {self.name!r} was not let go of within {timeout:g} s")

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- called by handles --

    def check_pid(self) -> None:
        """Raises ForkError in a forked child."""
        self._transfers.check_pid()

    def describe_token(self, token: int) -> str:
        """A transfer in words."""
        return f"transfer {token} of pool {self.name!r}"

    def cancel_token(self, token: int) -> bool:
        """Not how these are cancelled."""
        return False

    def stop(self, transfer: bytes, state: State, cause: str) -> None:
        """Ends a transfer, if it has not ended."""
        if not isinstance(cause, str) or not 1 <= len(cause) <= 255:
            raise ArgumentError(f"the cause must be a word or some, not {cause!r}")
        self._tell(lambda: self._exchange.stop(transfer, End(state, cause)))

    def announce(self, transfer: bytes, unit: SendUnit, positions: Ids) -> None:
        """These of a layer are ready."""
        self._tell(lambda: self._exchange.to_send(transfer, Announce(unit, positions)))

    def finish(self, transfer: bytes, meta: bytes) -> None:
        """All have been announced."""
        data = check_meta(meta)
        self._tell(lambda: self._exchange.to_send(transfer, FinishNow(data)))

    def state_of(self, transfer: bytes) -> State | None:
        """Of a transfer that has not ended."""
        one = self._exchange.inbound.get(transfer) or self._exchange.outbound.get(transfer)
        return None if one is None else one.machine.state

    def withdraw(self, name: str) -> None:
        """Ends an offer."""
        self._tell(lambda: self._pulls.withdraw(name, "it was withdrawn"))

    # -- helpers --

    def _over(self) -> None:
        """The exchange is driven no more."""
        self._pulls.close()
        self._closed.set()

    def _tell(self, step: Callable[[], Any]) -> None:
        """Runs a step on the thread of transfers, and has looked at what it was about. What goes wrong in it ends the
        pool's transfers, not the thread.
        """

        def guarded() -> Task:
            try:
                about = step()
            except Exception as error:  # noqa: BLE001 - reported as the outcome of the transfers
                log.exception("pool %s", self.name)
                about = None
                self._exchange.fail(PcclError(f"the pool failed: {error!r}"))
            return self._exchange if about is None else about

        self._transfers.tell(guarded)

    def _check(self) -> None:
        self._transfers.check_pid()
        if self._closing or self._closed.is_set():
            raise Closed(f"pool {self.name!r} is closed")

    def _ids(self, blocks: Blocks) -> list[Ids]:
        """Checked, of each group."""
        given = per_group(blocks, self._names, "blocks")
        return [self._memory.check(at, [] if one is None else one) for at, one in enumerate(given)]

    def _hashes(self, given: Sequence[Any], counts: Sequence[int], names: Sequence[str]) -> list[Any]:
        for one, count, name in zip(given, counts, names, strict=True):
            if one is not None and len(one) != count:
                raise ArgumentError(f"{len(one)} hashes for {count} blocks of {name!r}")
        return list(given)

    def _wish(
        self, request_id: str, priority: Priority, on_failure: str, hedge_after: float | None, codec: str
    ) -> Wish:
        if not isinstance(request_id, str) or not 1 <= len(request_id) <= 255:
            raise ArgumentError(f"request_id must be a string of 1 to 255 characters, not {request_id!r}")
        if priority not in CLASSES:
            raise ArgumentError(f"priority must be one of {', '.join(CLASSES)}, not {priority!r}")
        if on_failure not in ("fail", "recompute", "hedge"):
            raise ArgumentError(f"on_failure must be fail, recompute or hedge, not {on_failure!r}")
        if (hedge_after is None) is (on_failure == "hedge"):
            raise ArgumentError("hedge_after goes with on_failure='hedge', and only with that")
        hedge_s = None if hedge_after is None else self._seconds("hedge_after", hedge_after, 0.0)
        wish = check_wish(codec, self.layout)
        may = {name for name in self._speeds if CODECS[name].lossless or wish == "int8"} if wish != "raw" else set()
        return Wish(request_id, priority, on_failure, hedge_s, frozenset(may | {"raw"}))

    def _seconds(self, what: str, given: float | None, default: float) -> float:
        return _seconds(what, default if given is None else given)


def _seconds(what: str, given: Any) -> float:
    if not isinstance(given, int | float) or not 0 < given < _SECONDS_MAX:  # also not a number
        raise ArgumentError(f"{what} must be a positive number of seconds, not {given!r}")
    return float(given)


def _first(given: Any) -> int:
    if given is None:
        return 0
    if not isinstance(given, int) or not 0 <= given < WANTED_MAX:
        raise ArgumentError(f"first must be the number of an offered block, not {given!r}")
    return given


def _have(given: Any, count: int) -> dict[int, bytes]:
    if given is None:
        return {}
    wrong = [position for position in given if not 0 <= position < count]
    if wrong:
        raise ArgumentError(f"have names position {wrong[0]} of {count}")
    return {int(position): bytes(known) for position, known in given.items()}
