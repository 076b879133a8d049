"""make_corpus.py - writes the seed inputs of fuzz_wire.c, fuzz_mux.c and fuzz_engine.c into the directories beside it.

The engine's inputs are programs in the byte code of fuzz_engine.c's command(): they carry ops through to their commit,
through changes of epoch, lost streams and spoiled handshakes, so that mutation starts from deep states.

    python tests/c/corpus/make_corpus.py
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

HERE = Path(__file__).parent
SEGMENT_BYTES = 64
MEASURE, RAW, SUBMIT, TIME, CLOSE, DIAL, ANSWER, CHANGE, GIVE_UP, RELAY = 3, 6, 7, 9, 10, 11, 12, 13, 14, 15
RELAYED = 0x20
ANSWER_CALL = DIAL | 0xC0  # then the number of the call; 0: of the engine's last one
DATA, GRANT, FIN, ACK, PING, PONG, VOID = range(1, 8)
PROBE = 0
# (name, algorithm, element bytes, count) in the order of shapes[] in fuzz_engine.c
SHAPES = [
    ("all_reduce", "ring", 4, 100),
    ("all_reduce", "mesh", 4, 100),
    ("all_reduce", "mesh", 4, 400),
    ("all_reduce", "mesh", 2, 77),
    ("reduce_scatter", "mesh", 4, 90),
    ("all_gather", "mesh", 1, 300),
    ("broadcast", "ring", 4, 70),
    ("broadcast", "mesh", 4, 70),
    ("all_to_all", "mesh", 4, 40),
    ("send_recv", "mesh", 4, 50),
    ("barrier", "mesh", 1, 0),
    ("all_reduce", "ring", 4, 2),
    ("send", "mesh", 4, 60),
    ("own broadcast", "ring", 4, 70),
    ("all_reduce", "one_round", 4, 50),
    ("all_reduce", "one_round", 2, 50),
]


def order_of(choice: int) -> list[int]:
    """Nodes by rank in the epoch that this choice byte configures."""
    nodes = [(i + (choice >> 4 & 3)) % 3 for i in range(3)]
    return [node for node in nodes if node == 0 or choice & 1 << node]


def span_segments(count: int, n: int, span: int, size: int) -> int:
    """How many segments a span has."""
    elements = count * (span + 1) // n - count * span // n
    return -(-elements * size // SEGMENT_BYTES)


def frame(shape: int, kind: int, side: int, step: int = 0, segment: int = 0, flags: int = 0) -> bytes:
    """The command for one frame from a side (0: node 1, 1: node 2, unless streams came and went)."""
    return bytes([0, side << 5 | shape, kind | flags, step << 4 | segment])


def row_sources(name: str, algorithm: str, order: list[int]) -> list[int]:
    """Who sends the engine a row in an exchange."""
    if name in ("all_gather", "all_to_all"):
        return [node for node in order if node]
    if name == "broadcast" and algorithm == "ring":
        return [order[order.index(0) - 1]]
    return [1] if name in ("broadcast", "send_recv") else []


def segments(shape: int, order: list[int]) -> list[tuple[int, int, int]]:
    """(node, step, segment) of everything that the engine is to receive for the op."""
    name, algorithm, size, count = SHAPES[shape]
    n, rank = len(order), order.index(0)
    if name == "all_reduce" and algorithm == "ring":
        hops, node = n - 1, order[rank - 1]
        spans = [(rank - s - 1) % n if s < hops else (rank - (s - hops)) % n for s in range(2 * hops)]
        return [(node, s, i) for s, span in enumerate(spans) for i in range(span_segments(count, n, span, size))]
    if algorithm == "one_round":
        return [(node, 0, i) for node in order if node for i in range(-(-count * size // SEGMENT_BYTES))]
    if name in ("all_reduce", "reduce_scatter"):
        own = span_segments(count, n, rank, size)
        out = [(node, 0, i) for node in order if node for i in range(own)]
        if name == "all_reduce":
            out += [(node, 1, i) for r, node in enumerate(order) if node
                    for i in range(span_segments(count, n, r, size))]  # fmt: skip
        return out
    per_row = -(-count * size // SEGMENT_BYTES)
    return [(node, 0, i) for node in row_sources(name, algorithm, order) for i in range(per_row)]


def op_frames(shape: int, choice: int, sides: tuple[int, int] = (0, 1)) -> list[bytes]:
    """All frames that bring the op to its commit. `sides` of nodes 1 and 2."""
    order = order_of(choice)
    partners = [1] if SHAPES[shape][0] in ("send", "send_recv") else [node for node in order if node]
    grants = [frame(shape, GRANT, sides[node - 1]) for node in partners]
    fins = [frame(shape, FIN, sides[node - 1]) for node in partners]
    data = [frame(shape, DATA, sides[node - 1], step, i) for node, step, i in segments(shape, order)]
    return grants + data + fins


def detour_inputs() -> list[bytes]:
    """Node 2 over node 1, which the engine dials as a relay; node 1 over node 2, which dials; and relaying for both."""
    out: list[bytes] = []
    for shape in range(len(SHAPES)):
        for choice, link, sides in ((0x0E, bytes([ANSWER]), (0, 2)), (0x1E, bytes([DIAL | RELAYED]), (2, 1))):
            head = bytes([choice]) + link + bytes([SUBMIT, shape])
            frames = op_frames(shape, choice, sides)
            half = len(frames) // 2
            out.append(head + b"".join(frames))
            out.append(head + b"".join(frames[:half]) + bytes([CLOSE, 2]) + link + b"".join(frames[half:]))
            after = bytes([CHANGE, 6, TIME, 13, CHANGE, choice]) + link + bytes([TIME, 13])
            out.append(head + b"".join(frames) + after)
            out.append(head + b"".join(frames[:half]) + bytes([CHANGE, 0x80 | choice]) + link + b"".join(frames))
    for how in range(0, 256, 8):
        for node in (0, 1):
            out.append(bytes([6, RELAY, how | node, 5, *range(5), 7, *range(7), RELAY, how | node | 2, 60, *range(60)]))
    out.append(bytes([0x0E, RELAY, 3, 9, *range(9), CHANGE, 0x82, TIME, 12, RELAY, 3]))
    return out


def transfer_inputs() -> list[bytes]:
    """Regions that are served, fetches that are answered, and ends of all kinds in between (cases 4 and 5)."""
    ask = [bytes([4, 4 * i, i, 1, 0, 50, 10, 250]) for i in range(4)]
    pieces = [bytes([4, 1, 0, segment]) for segment in range(3)] + [bytes([4, 1, 0, 16 | 3, 57])]
    offers = [bytes([5, 8, 0]), bytes([5, 0, 0, 5, 4, 0, 200, 5, 4, 150, 200])]
    ends = [
        b"",
        bytes([5, 1, 0]),
        bytes([5, 2, 0]),
        bytes([4, 2, 0, 0]),
        bytes([4, 3, 0, 0]),
        bytes([TIME, 6]),
        bytes([CHANGE, 0x86]),
    ]
    out = [bytes([6]) + offer + b"".join(ask) + end + b"".join(ask) for offer in offers for end in ends]
    for end in ends:
        fetch = bytes([6, 5, 5, 31])
        out.append(fetch + b"".join(pieces[:2]) + end + b"".join(pieces[2:]))
        out.append(fetch + b"".join(pieces[::-1]) + end + bytes([CLOSE, 0, DIAL]))
    return out


def call_inputs() -> list[bytes]:
    """Node 1 dials the engine. As a relay to node 2 it is called for a stream; it calls for one itself; in vain."""
    out: list[bytes] = []
    for shape in range(len(SHAPES)):
        head, frames = bytes([0x0E, ANSWER_CALL, 0, SUBMIT, shape]), op_frames(shape, 0x0E, (0, 2))
        half = len(frames) // 2
        out.append(head + b"".join(frames))
        again = bytes([CLOSE, 2, TIME, 12, ANSWER_CALL, 0])
        out.append(head + b"".join(frames[:half]) + again + b"".join(frames[half:]))
    for side in (0, 1):
        for number in (0, 1, 2, 255):
            call, node = bytes([4, side << 5, 24, number]), side << 4
            out.append(bytes([6]) + call + bytes([ANSWER | node, TIME, 6]) + frame(1, DATA, side))
            out.append(bytes([6]) + call * 3 + bytes([ANSWER | 0x40 | node, 2, 5, 9, CHANGE, 0x86, TIME, 13]))
            out.append(bytes([0x0E, ANSWER_CALL | node, number, CLOSE, side]) + call + bytes([TIME, 13]))
    return out


def engine_inputs() -> list[bytes]:
    """The programs."""
    out: list[bytes] = []
    for choice in (2, 6, 0x16, 0x26, 0x86):
        for shape in range(len(SHAPES)):
            head, frames = bytes([choice]), op_frames(shape, choice)
            half = len(frames) // 2
            call = bytes([SUBMIT, shape])
            out.append(head + call + b"".join(frames))
            if choice != 6:
                continue
            out.append(head + b"".join(frames) + call)  # parked first
            out.append(head + call + b"".join(frames + frames))  # everything again with new numbers
            out.append(head + call + b"".join(frames[:half]) + bytes([CHANGE, 0x80 | choice]) + b"".join(frames))
            out.append(head + call + b"".join(frames[:half]) + bytes([CHANGE, 0x82]) + b"".join(op_frames(shape, 2)))
            out.append(head + call + b"".join(frames[:half]) + bytes([CHANGE, 0x87, 0, 1, 2]) + call)
            out.append(head + call + bytes([CHANGE, choice]) + call + b"".join(frames))
            out.append(head + call + b"".join(frames[:half]) + bytes([CLOSE, 0, DIAL]) + b"".join(frames[half:]))
            out.append(head + call + b"".join(frames[:half]) + bytes([GIVE_UP, half % 16]) + b"".join(frames[half:]))
            out.append(head + call + bytes([TIME, 13, TIME, 13]) + b"".join(frames))
    for kind in range(DATA, VOID + 1):
        for flags in (8, 16, 32, 64, 128, 0xF0):
            out.append(bytes([6, SUBMIT, 1]) + frame(1, kind, 0, 0, 0, flags) + bytes(range(20)))
        out.append(
            bytes([6]) + frame(1, PROBE, 0, 0, kind) + bytes([MEASURE, kind << 4, SUBMIT, 1, MEASURE, 0xFF, TIME, 9])
        )
    for start in (0, 1):
        for how in (0x00, 0x40, 0x80):
            out.append(bytes([6 | start, DIAL | how, 3, 5, 9, DIAL | how | 0x10, 1, 60, 1]))
            out.append(bytes([6 | start, ANSWER | how | 0x10, 2, 5, 9, ANSWER | how, 1, 60, 1, TIME, 12]))
        out.append(bytes([6 | start, DIAL, RAW, 0, 200]) + bytes(range(200)))
    return out


def mux_inputs() -> list[bytes]:
    """As engine_inputs, but for fuzz_mux.c: short, and the engine has its turn where a command's top bit says so."""
    turn, narrow, big, open_pipe = 0x80, 12, 15, 11
    out: list[bytes] = []
    for choice in (2, 6, 0x16, 0x86):
        for shape in range(len(SHAPES)):
            frames = op_frames(shape, choice)
            if len(frames) > 30:
                continue
            half, head, call = len(frames) // 2, bytes([choice]), bytes([SUBMIT, shape])
            turns = [bytes([turn]) + f[1:] for f in frames]
            out.append(head + call + b"".join(frames))
            if choice != 6:
                continue
            out.append(head + b"".join(turns) + call)
            out.append(head + call + bytes([narrow | 16, 7, 0, narrow | 0x20, 100, 50]) + b"".join(turns))
            out.append(head + call + b"".join(turns[:half]) + bytes([10 | turn, open_pipe]) + b"".join(turns[half:]))
            out.append(head + call + b"".join(frames[:half]) + bytes([CHANGE | turn, 0x80 | choice]) + b"".join(frames))
    out += [bytes([6, 5, 0x1F, 31]) + data[1:] for data in transfer_inputs()[:14]] + transfer_inputs()
    for kind in range(DATA, VOID + 1):
        for flags in (8, 16, 32, 64, 128, 0xF0):
            out.append(bytes([6, SUBMIT, 1]) + frame(1, kind, 0, 0, 0, flags) + bytes(range(20)))
    out += [
        bytes([0x86, big, k, k, turn | big, k, k, narrow, 200, 0]) + bytes([turn | big, 1, k]) * 3 for k in range(8)
    ]
    out.append(bytes([6, turn | RAW, 0, 200]) + bytes(range(200)))
    return out


def wire_inputs() -> list[bytes]:
    """Messages that decode once their checksum is made, and some that do not."""
    desc = 1 | 2 << 12 | 100 << 19
    out = [bytes(80), bytes([3]) + bytes(110), bytes([1]) + b"\xff" * 110]
    for kind in range(15):
        head = struct.pack(
            "<IIIBBHIIQIIQQII", 0, 7, 64 if kind in (1, 13) else 0, kind, 0, 1, 2, 3, 4, 5, 6, desc, 0, 9, 8
        )
        out.append(bytes([1]) + head)
    hellos = (
        *((0, 1, 0, 0, 0), (3, 4, 0, 0, 0), (4, 4, 0, 0, 0), (0, 1, 1, 3, 0), (0, 1, 2, 0, 0), (0, 1, 3, 0, 0)),
        *((0, 1, 4, 0, 0), (0, 1, 0, 0, 1 << 32 | 5), (0, 1, 0, 0, 2**64 - 1), (0, 1, 2, 0, 7)),
    )
    for stream, streams, purpose, hops, incarnation in hellos:
        target = bytes([7] * 16 if purpose == 1 else 16)
        numbers = struct.pack("<IIIHHQ", 1, stream, streams, purpose, hops, incarnation)
        out.append(bytes([3]) + b"PCCL\1\0\1\0" + bytes(48) + target + numbers + bytes(36))
    return out


def main() -> None:
    """Writes every input under the hash of its bytes."""
    engine = engine_inputs() + detour_inputs() + call_inputs() + transfer_inputs()
    for name, inputs in (("wire", wire_inputs()), ("mux", mux_inputs()), ("engine", engine)):
        directory = HERE / name
        directory.mkdir(exist_ok=True)
        for data in inputs:
            (directory / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


if __name__ == "__main__":
    main()
