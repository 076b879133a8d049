"""The C engine in Python's words: the only importer of pccl._core beside _codecs.py.

Nothing here decides anything. `Engine` owns one handle and turns arguments into the structs of csrc/include/pccl_api.h,
and return codes into the exceptions of pccl/errors.py. No call blocks: whoever waits does so on `Engine.event_fd` or on
a lock, where Ctrl-C works.

Addresses handed to `submit` must stay valid until the op's event; keeping the tensors alive is the caller's duty
(communicator.py). One lock guards the handle and the reused request, another the reused event array; both are held for
microseconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from pccl._core import ffi, lib
from pccl._records import event_of, link_of, op_state_of
from pccl._requests import exact, fetch_request
from pccl.errors import Closed, error_of
from pccl.types import (
    PEER_ID_BYTES,
    REGION_KEY_BYTES,
    Algorithm,
    EngineStats,
    EpochConfig,
    Event,
    FetchRequest,
    Lanes,
    LineStats,
    LinkStats,
    MemberConfig,
    OpDesc,
    OpRequest,
    OpState,
    Region,
    SimPath,
    Status,
)

__all__ = [
    "Algorithm",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "FetchRequest",
    "Kind",
    "LineStats",
    "LinkStats",
    "OpRequest",
    "RedOp",
    "Region",
    "Sim",
    "SimPath",
    "byte_array",
    "copy_pieces",
    "crc32c",
    "describe_op",
    "err_name",
    "ffi",
    "hmac_sha256",
    "kernels",
    "lib",
    "now_ns",
    "pin",
    "read_desc",
    "reduce",
    "tls_library",
    "tls_missing",
    "wire_version",
]

_EVENTS_PER_CALL = 256
_LINKS_FIRST = 64
_TEXT_BYTES = 128
_REFUSAL_BYTES = 256
_NULL = ffi.NULL


class Kind(IntEnum):
    """pccl_kind."""

    ALL_REDUCE = lib.PCCL_ALL_REDUCE
    REDUCE_SCATTER = lib.PCCL_REDUCE_SCATTER
    ALL_GATHER = lib.PCCL_ALL_GATHER
    BROADCAST = lib.PCCL_BROADCAST
    ALL_TO_ALL = lib.PCCL_ALL_TO_ALL
    SEND_RECV = lib.PCCL_SEND_RECV
    BARRIER = lib.PCCL_BARRIER


class RedOp(IntEnum):
    """pccl_redop."""

    SUM = lib.PCCL_SUM
    AVG = lib.PCCL_AVG
    PROD = lib.PCCL_PROD
    MIN = lib.PCCL_MIN
    MAX = lib.PCCL_MAX


@dataclass(slots=True, frozen=True)
class EngineConfig:
    """How an engine is made (pccl_config)."""

    peer_id: bytes
    run: bytes  # 16 bytes
    key: bytes  # 32 bytes
    transport: str = "tcp"
    listen: str = "[::]:0"
    congestion: str = ""
    fault_seed: int = 0
    eager_bytes: int = 4 << 20
    handshake_timeout_s: float = 5.0
    silence_s: float = 2.5
    defects: int = 0
    psk: bytes = b""  # "tls": 32 bytes, or none if there are certificates
    tls_files: tuple[str, str, str] | None = None  # authority, certificate, private key (PEM)
    sim: Sim | None = None


# -- helpers -----------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    return str(ffi.string(value).decode(errors="replace"))


def _check(code: int, doing: str) -> None:
    """Raises the typed error of a return code; the reason is read in the thread of the failed call."""
    if code != 0:
        raise error_of(code, f"{doing}: {_text(lib.pccl_last_error()) or err_name(code)}")


def _fitting(value: str, room: int, what: str) -> bytes:
    """Text for a fixed char array, terminated."""
    data = value.encode()
    if len(data) >= room or b"\0" in data:
        raise error_of(Status.EINVAL, f"{what} {value!r} must have fewer than {room} bytes")
    return data


def err_name(code: int) -> str:
    """The name of a pccl_err."""
    return _text(lib.pccl_err_name(code))


def describe_op(desc: int) -> str:
    """A packed description of an op in words, such as "all_reduce sum float32 x 1024 mesh"."""
    text = ffi.new("char[]", _TEXT_BYTES)
    length = lib.pccl_desc_text(desc, text, _TEXT_BYTES)
    return bytes(ffi.buffer(text)[0 : max(0, min(length, _TEXT_BYTES - 1))]).decode(errors="replace")


def read_desc(desc: int) -> OpDesc | None:
    """What a packed description says; None if it says nothing."""
    fields = ffi.new("pccl_op_desc *")
    if lib.pccl_desc_read(desc, fields) != Status.OK:
        return None
    return OpDesc(fields.kind == lib.PCCL_ALL_REDUCE, fields.algorithm, fields.codec, fields.bytes)


def now_ns() -> int:
    """The engine's monotonic clock (pccl_now_ns), the clock of deadlines. Not asked through C: cffi would let go of the
    GIL, and where other threads are busy getting it back takes longer than all else in a call of an op.
    """
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def kernels() -> str:
    """The instruction set in use: "avx512", "avx2", "neon" or "scalar"."""
    return _text(lib.pccl_kernels())


def tls_missing() -> str:
    """ "" if TLS can be used here; else what is missing, and what to install."""
    return _text(lib.pccl_tls_missing())


def tls_library() -> str:
    """Version of the library that does TLS; "" if there is none."""
    return _text(lib.pccl_tls_library())


def wire_version() -> int:
    """Version of the data plane's format."""
    return int(lib.pccl_wire_version())


def pin(array: Any) -> tuple[int, Any]:
    """(address, hold) of a C-contiguous object with the buffer protocol; `hold` keeps the memory where it is."""
    hold = ffi.from_buffer(array)
    return int(ffi.cast("uintptr_t", hold)), hold


def byte_array(address: int, nbytes: int) -> np.ndarray[Any, Any]:
    """A uint8 view of raw memory. Does not keep it alive."""
    if nbytes == 0:
        return np.empty(0, np.uint8)
    return np.frombuffer(ffi.buffer(ffi.cast("uint8_t *", address), nbytes), np.uint8)


def copy_pieces(to: Sequence[int], source: Sequence[int], nbytes: Sequence[int]) -> None:
    """Copies nbytes[i] bytes of raw memory from source[i] to to[i], in order, without the interpreter's lock."""
    lib.pccl_copy_pieces(
        ffi.new("uintptr_t[]", to), ffi.new("uintptr_t[]", source), ffi.new("uint64_t[]", nbytes), len(nbytes)
    )


def reduce(
    output: Any, inputs: Sequence[Any], *, dtype: int, redop: int, count: int, divisor: int = 1, isa: str | None = None
) -> None:
    """Folds `count` elements of the inputs, in their order, into the output; contiguous buffers. See csrc/reduce.h."""
    holds = [ffi.from_buffer(value) for value in inputs]
    sources = ffi.new("const void *[]", holds)
    name = _NULL if isa is None else isa.encode()
    _check(
        lib.pccl_reduce(
            name, dtype, redop, ffi.from_buffer(output, require_writable=True), sources, len(holds), count, divisor
        ),
        "reduce",
    )


def crc32c(data: Any, crc: int = 0) -> int:
    """CRC32C of a contiguous buffer, continuing `crc`."""
    hold = ffi.from_buffer(data)
    return int(lib.pccl_crc32c(crc, hold, len(hold)))


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """HMAC-SHA256, as the handshake computes it."""
    mac = ffi.new("uint8_t[32]")
    lib.pccl_hmac_sha256(ffi.from_buffer(key), len(key), ffi.from_buffer(data), len(data), mac)
    return bytes(ffi.buffer(mac))


# -- the engine --------------------------------------------------------------------------------------------------


class Engine:
    """One engine: its listening socket, its thread (after `start`), its ops. Life: new, start, close, closed, free.

    Every method returns at once and may be called from any thread, `step` and `free` excepted. After `free` every
    method raises Closed, `close`, `closed`, `free` and `events` excepted, which do nothing.
    """

    __slots__ = (
        "__weakref__",
        "_event_array",
        "_event_lock",
        "_handle",
        "_lock",
        "_name",
        "_request",
        "_root",
        "_sim",
        "_target",
        "event_fd",
        "peer_id",
        "port",
    )

    def __init__(self, config: EngineConfig) -> None:
        """Makes the engine and begins to listen. Raises ArgumentError, ResourceError, or PcclError when the system says
        no.
        """
        handle_p = ffi.new("pccl_engine **")
        _check(lib.pccl_engine_new(_c_config(config), handle_p), f"cannot listen at {config.listen}")
        self._handle = handle_p[0]
        self._sim = config.sim  # must outlive the engine
        self._lock = threading.Lock()
        self._event_lock = threading.Lock()
        self._event_array = ffi.new("pccl_event[]", _EVENTS_PER_CALL)
        self._request = ffi.new("pccl_op_request *")
        self._request.size = ffi.sizeof("pccl_op_request")
        self._name = self._request.name
        self._root = ffi.buffer(self._request.root.bytes)
        self._target = ffi.buffer(self._request.target.bytes)
        self.peer_id = config.peer_id
        self.port = int(lib.pccl_engine_port(self._handle))
        self.event_fd = int(lib.pccl_engine_event_fd(self._handle))

    # -- life --

    def start(self) -> None:
        """Starts the engine's thread."""
        with self._lock:
            _check(lib.pccl_engine_start(self._live()), "cannot start the engine's thread")

    def close(self) -> None:
        """Asks the thread to end: pending ops end with Closed, sockets close. Idempotent."""
        with self._lock:
            if self._handle is not None:
                lib.pccl_engine_close(self._handle)

    @property
    def closed(self) -> bool:
        """Whether the thread has ended (or was never started)."""
        with self._lock:
            return self._handle is None or lib.pccl_engine_closed(self._handle) == 1

    def free(self) -> None:
        """Frees the handle; only when `closed`. Idempotent."""
        with self._event_lock, self._lock:
            handle = self._handle
            if handle is None:
                return
            if lib.pccl_engine_closed(handle) != 1:
                raise error_of(Status.EINVAL, "an engine can only be freed when it is closed")
            self._handle = None
            lib.pccl_engine_free(handle)

    def drop(self) -> None:
        """Forgets the handle without freeing it: in a forked child, where the engine's thread does not exist."""
        self._handle = None
        self._lock = threading.Lock()
        self._event_lock = threading.Lock()

    def step(self, at_ns: int) -> int:
        """One turn of an engine without a thread; returns when it wants the next (2**64 - 1: never)."""
        return int(lib.pccl_engine_step(self._live(), at_ns))

    def _live(self) -> Any:
        if self._handle is None:
            raise Closed("the engine is closed")
        return self._handle

    # -- ops --

    def submit(self, op: OpRequest) -> None:
        """Starts an op. Raises ArgumentError, ResourceError or Closed; then nothing is borrowed, no event will come."""
        cast = ffi.cast
        with self._lock:
            handle = self._live()
            request = self._request
            request.kind = op.kind
            request.dtype = op.dtype
            request.redop = op.redop
            request.algorithm = op.algorithm
            request.codec = op.codec
            request.priority = op.priority
            name = self._name
            name.boundary, name.lane, name.seq = op.name
            request.shape = op.shape
            request.count = op.count
            setattr(request, "in", cast("void *", op.input))
            request.out = cast("void *", op.output)
            self._root[:] = op.root
            self._target[:] = op.target
            origin = _c_ids(op.origin) if op.origin else _NULL
            request.origin_count = len(op.origin)
            request.origin = origin
            request.deadline_ns = op.deadline_ns
            request.token = op.token
            code = lib.pccl_engine_submit(handle, request)
            if code != 0:
                _check(code, "the op was refused")

    def abandon(self, token: int, status: int) -> None:
        """Ends one pending op without asking anybody."""
        with self._lock:
            _check(lib.pccl_engine_abandon(self._live(), token, status), "abandon")

    def fail_all(self, status: int) -> None:
        """Ends every pending op with this status, inputs restored."""
        with self._lock:
            _check(lib.pccl_engine_fail_all(self._live(), status), "fail_all")

    # -- epochs --

    def advance(self, boundary: int) -> None:
        """This peer has reached a boundary."""
        with self._lock:
            _check(lib.pccl_engine_advance(self._live(), boundary), "advance")

    def prepare(self, members: Sequence[MemberConfig], streams: int) -> None:
        """Opens links ahead of an epoch that will need them, and closes those of earlier calls that none needs."""
        array = _c_members(members)
        with self._lock:
            _check(lib.pccl_engine_prepare(self._live(), array, len(members), streams), "prepare")

    def freeze(self, change: int) -> None:
        """Stops all epochs; a FROZEN event with token == change follows."""
        with self._lock:
            _check(lib.pccl_engine_freeze(self._live(), change), "freeze")

    def forget(self, boundary: int) -> None:
        """What lanes were before this boundary may be forgotten."""
        with self._lock:
            _check(lib.pccl_engine_forget(self._live(), boundary), "forget")

    def frozen(self) -> tuple[list[OpState], Lanes]:
        """After FROZEN: the pending ops, and how many were posted per lane, by boundary."""
        op_count, lane_count = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        with self._lock:
            handle = self._live()
            ops, lanes, room = _NULL, _NULL, (0, 0)
            while True:
                op_count[0], lane_count[0] = room
                code = lib.pccl_engine_frozen(handle, ops, op_count, lanes, lane_count)
                needed = (op_count[0], lane_count[0])
                if needed[0] <= room[0] and needed[1] <= room[1]:
                    _check(code, "frozen")
                    break
                room = needed
                ops = ffi.new("pccl_op_state[]", max(1, room[0]))
                lanes = ffi.new("pccl_lane_state[]", max(1, room[1]))
        posted: Lanes = {}
        for i in range(needed[1]):
            table = posted.setdefault(lanes[i].boundary, {})
            if lanes[i].posted:
                table[lanes[i].lane] = lanes[i].posted
        return [op_state_of(ops[i]) for i in range(needed[0])], posted

    def configure(self, config: EpochConfig) -> None:
        """Installs an epoch."""
        members = _c_members(config.members)
        verdicts = ffi.new("pccl_verdict[]", max(1, len(config.verdicts)))
        for verdict, (name, status) in zip(verdicts, config.verdicts, strict=False):
            verdict.name.boundary, verdict.name.lane, verdict.name.seq = name
            verdict.status = status
        epoch = ffi.new("pccl_epoch *")
        epoch.size = ffi.sizeof("pccl_epoch")
        epoch.epoch = config.epoch
        epoch.from_boundary = config.from_boundary
        epoch.change = config.change
        epoch.member_count, epoch.members = len(config.members), members
        epoch.verdict_count, epoch.verdicts = len(config.verdicts), verdicts
        epoch.streams = config.streams
        epoch.segment_bytes = config.segment_bytes
        epoch.one_round_bytes_max = config.one_round_bytes_max
        epoch.mesh_bytes_max = config.mesh_bytes_max
        epoch.large_algorithm = config.large_algorithm
        with self._lock:
            _check(lib.pccl_engine_configure(self._live(), epoch), f"epoch {config.epoch}")

    def measure(self, peer: bytes, nbytes: int, timeout_s: float) -> None:
        """Measures the link to a peer with filler: at most 64 MiB in 10 s. PcclError: more, or nothing."""
        peer_id = _c_ids((peer,))
        with self._lock:
            _check(lib.pccl_engine_measure(self._live(), peer_id, nbytes, int(timeout_s * 1e9)), "measure")

    def kill_stream(self, peer: bytes, index: int = 0) -> None:
        """Fault injection: kills one stream of the link to a peer."""
        peer_id = _c_ids((peer,))
        with self._lock:
            _check(lib.pccl_engine_kill_stream(self._live(), peer_id, index), "kill_stream")

    # -- transfers --

    def offer(self, region: Region, *, whole: bool) -> None:
        """Offers memory to others: all of it, or nothing before `extend`. It is borrowed until the WITHDRAWN event."""
        raw = ffi.new("pccl_region *")
        raw.size = ffi.sizeof("pccl_region")
        ffi.buffer(raw.key)[:] = _c_key(region.key)
        raw.generation, raw.bytes, raw.token = region.generation, region.nbytes, region.token
        raw.data, raw.changes = ffi.cast("void *", region.address), region.changes
        raw.watched = region.watched
        with self._lock:
            _check(lib.pccl_engine_offer(self._live(), raw, whole), "the offer was refused")

    def extend(self, key: bytes, generation: int, offset: int, nbytes: int) -> None:
        """This part of a region may be fetched from now on."""
        with self._lock:
            _check(lib.pccl_engine_extend(self._live(), _c_key(key), generation, offset, nbytes), "extend")

    def withdraw(self, key: bytes, generation: int) -> None:
        """Ends an offer; a WITHDRAWN event follows when the memory is not read any more."""
        with self._lock:
            _check(lib.pccl_engine_withdraw(self._live(), _c_key(key), generation), "withdraw")

    def fetch(self, request: FetchRequest) -> None:
        """Starts a fetch; a FETCH event ends it. After ArgumentError, ResourceError or Closed nothing is borrowed."""
        raw, hold = fetch_request(ffi, request)
        with self._lock:
            _check(lib.pccl_engine_fetch(self._live(), raw), "the fetch was refused")
        del hold

    def cancel_fetch(self, token: int) -> None:
        """Ends the fetches with this token."""
        with self._lock:
            _check(lib.pccl_engine_cancel_fetch(self._live(), token), "cancel_fetch")

    def limit(self, priority: int, bytes_per_s: int) -> None:
        """Caps what is sent for fetches of a priority, to all peers together; 0: no cap."""
        with self._lock:
            _check(lib.pccl_engine_limit(self._live(), priority, bytes_per_s), "limit")

    def acquaint(self, member: MemberConfig, streams: int) -> None:
        """Keeps a link for transfers to a peer, whether it is in an epoch or not; the peer must do the same."""
        array = _c_members((member,))
        with self._lock:
            _check(lib.pccl_engine_acquaint(self._live(), array, streams), "acquaint")

    def unacquaint(self, peer: bytes) -> None:
        """The end of that: fetches over the link end with EPEER, unless an epoch needs it."""
        with self._lock:
            _check(lib.pccl_engine_unacquaint(self._live(), _c_ids((peer,))), "unacquaint")

    # -- facts --

    def events(self) -> list[Event]:
        """Takes all waiting events."""
        taken: list[Event] = []
        array = self._event_array
        with self._event_lock:
            while self._handle is not None:
                count = lib.pccl_engine_events(self._handle, array, _EVENTS_PER_CALL)
                taken.extend([event_of(array[i], _peer_of(array[i])) for i in range(count)])
                if count < _EVENTS_PER_CALL:
                    break
        return taken

    def desc_text(self, desc: int) -> str:
        """A packed description in words."""
        return describe_op(desc)

    def read_desc(self, desc: int) -> OpDesc | None:
        """What a packed description says."""
        return read_desc(desc)

    def stats(self) -> EngineStats:
        """Counters since the engine was made, as at the end of its last turn: an event may be a moment ahead."""
        raw = ffi.new("pccl_stats *")
        raw.size = ffi.sizeof("pccl_stats")
        with self._lock:
            lib.pccl_engine_stats(self._live(), raw)
        return EngineStats(*(getattr(raw, name) for name in EngineStats.__slots__))

    def refusal(self) -> str:
        """Of the last REFUSED event: the other side's address, and why it was refused."""
        text = ffi.new("char[]", _REFUSAL_BYTES)
        with self._lock:
            lib.pccl_engine_refusal(self._live(), text, _REFUSAL_BYTES)
        return _text(text)

    def is_busy(self) -> bool:
        """Whether ops or transfers are under way here."""
        stats = self.stats()
        return bool(stats.ops_pending or stats.transfers_pending or stats.transfers_served)

    def oldest_boundary(self) -> int:
        """That of the oldest pending op; with none pending, the one last reached."""
        return self.stats().oldest_boundary

    def line(self) -> LineStats:
        """What is known about the line that the long links share."""
        stats = self.stats()
        return LineStats(*(getattr(stats, name) for name in LineStats.__slots__))

    def links(self) -> list[LinkStats]:
        """Every link of the engine."""
        room = _LINKS_FIRST
        while True:
            array = ffi.new("pccl_link_stats[]", room)
            with self._lock:
                count = lib.pccl_engine_links(self._live(), array, room)
            if count <= room:
                return [link_of(array[i], _peer_of(array[i])) for i in range(count)]
            room = count


def _c_config(config: EngineConfig) -> Any:
    raw = ffi.new("pccl_config *")
    raw.size = ffi.sizeof("pccl_config")
    raw.self.bytes = list(exact(config.peer_id, PEER_ID_BYTES, "a peer id"))
    raw.run = list(exact(config.run, 16, "the run's id"))
    raw.key = list(exact(config.key, 32, "the key"))
    raw.transport = _fitting(config.transport, 16, "transport")
    raw.listen = _fitting(config.listen, 64, "listen address")
    raw.congestion = _fitting(config.congestion, 16, "congestion control")
    raw.fault_seed = config.fault_seed
    raw.eager_bytes = config.eager_bytes
    raw.handshake_timeout_ns = int(config.handshake_timeout_s * 1e9)
    raw.silence_ns = int(config.silence_s * 1e9)
    raw.defects = config.defects
    if config.psk:
        raw.psk = list(exact(config.psk, 32, "the pre-shared key"))
        raw.has_psk = 1
    for name, path in zip(("tls_ca", "tls_cert", "tls_key"), config.tls_files or (), strict=False):
        setattr(raw, name, _fitting(path, 512, "the path of a TLS file"))
    raw.sim = _NULL if config.sim is None else config.sim.handle
    return raw


def _c_ids(ids: Sequence[bytes]) -> Any:
    """An array of pccl_peer_id."""
    array = ffi.new("pccl_peer_id[]", len(ids))
    ffi.buffer(array)[:] = b"".join([exact(peer, PEER_ID_BYTES, "a peer id") for peer in ids])
    return array


def _c_key(key: bytes) -> bytes:
    return exact(key, REGION_KEY_BYTES, "a region's key")


def _c_members(members: Sequence[MemberConfig]) -> Any:
    """An array of pccl_member; never of length 0."""
    array = ffi.new("pccl_member[]", max(1, len(members)))
    for raw, member in zip(array, members, strict=False):
        ffi.buffer(raw.id.bytes)[:] = exact(member.id, PEER_ID_BYTES, "a peer id")
        raw.since = member.since
        raw.weight = member.weight
        raw.region = member.region
        raw.streams = member.streams
        raw.via = 0 if member.via is None else 1 + member.via
        raw.incarnation = member.incarnation
        raw.dial = member.dial
        raw.address = _fitting(member.address, 80, "address")
    return array


def _peer_of(raw: Any) -> bytes:
    return bytes(ffi.buffer(raw.peer.bytes))


# -- the simulated network ---------------------------------------------------------------------------------------


class Sim:
    """A simulated network under a virtual clock, for engines made with transport "sim". One thread drives it.

    Every engine on it must be freed before `free`.
    """

    __slots__ = ("_handle",)

    def __init__(self, seed: int) -> None:
        sim_p = ffi.new("pccl_sim **")
        _check(lib.pccl_sim_new(seed, sim_p), "cannot make a simulated network")
        self._handle = sim_p[0]

    @property
    def handle(self) -> Any:
        """The C handle, for `EngineConfig`."""
        if self._handle is None:
            raise Closed("the simulated network is gone")
        return self._handle

    def free(self) -> None:
        """Frees the network. Idempotent."""
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.pccl_sim_free(handle)

    def set_path(self, source: int, target: int, path: SimPath) -> None:
        """Sets one direction between two nodes."""
        raw = ffi.new("pccl_sim_path *")
        for name in SimPath.__slots__:
            setattr(raw, name, getattr(path, name))
        _check(lib.pccl_sim_set_path(self.handle, source, target, raw), f"path {source} -> {target}")

    def crash(self, node: int) -> None:
        """The process at a node is gone."""
        _check(lib.pccl_sim_crash(self.handle, node), f"crash of node {node}")

    def reset(self, a: int, b: int, index: int = 0) -> bool:
        """Resets one live stream between two nodes; False if there is none."""
        code = lib.pccl_sim_reset(self.handle, a, b, index)
        if code == Status.EAGAIN:
            return False
        _check(code, f"reset between {a} and {b}")
        return True

    def stirred(self, node: int) -> bool:
        """Whether something has come to a node since this was asked last."""
        return bool(lib.pccl_sim_stirred(self.handle, node))

    def streams(self, node: int) -> int:
        """How many the process at a node has not closed."""
        return int(lib.pccl_sim_streams(self.handle, node))

    def next(self) -> int:
        """Time of the next delivery, 2**64 - 1 for none."""
        return int(lib.pccl_sim_next(self.handle))

    def advance(self, at_ns: int) -> int:
        """Delivers everything due by then; returns how many."""
        return int(lib.pccl_sim_advance(self.handle, at_ns))

    def digest(self) -> int:
        """Running digest of every delivery."""
        return int(lib.pccl_sim_digest(self.handle))
