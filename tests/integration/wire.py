"""wire.py - the data plane's bytes in Python (docs/protocol.md 2), for tests that speak to a peer's port.

Written against the protocol's text, not the C code: what both agree on is right twice.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
import struct
from dataclasses import dataclass

from pccl._native import crc32c

VERSION = 1
HELLO, CHALLENGE, PROOF, READY = 1, 2, 3, 4
SIZES = {HELLO: 132, CHALLENGE: 76, PROOF: 44, READY: 12}
DIRECT, RELAY, RELAYED = range(3)
NOBODY = bytes(16)
DATA, GRANT, FIN, ACK, PING, PONG, VOID = range(1, 8)


def message(stage: int, body: bytes, version: int = VERSION) -> bytes:
    """A handshake message: magic, version, stage, body, checksum."""
    head = b"PCCL" + struct.pack("<HBB", version, stage, 0) + body
    return head + struct.pack("<I", crc32c(head))


def hello(
    run: bytes,
    dialler: bytes,
    acceptor: bytes,
    *,
    stream: int = 0,
    streams: int = 1,
    version: int = VERSION,
    purpose: int = DIRECT,
    target: bytes = NOBODY,
    hops: int = 0,
    incarnation: int = 0,
) -> bytes:
    """A HELLO of epoch 1."""
    numbers = struct.pack("<IIIHHQ", 1, stream, streams, purpose, hops, incarnation)
    return message(HELLO, run + dialler + acceptor + target + numbers + secrets.token_bytes(32), version)


def proof(key: bytes, said: bytes, challenge: bytes) -> bytes:
    """The PROOF that answers a CHALLENGE."""
    return message(PROOF, hmac.digest(key, b"dialler " + said + challenge, "sha256"))


def acceptor_mac(key: bytes, said: bytes, nonce: bytes) -> bytes:
    """What the CHALLENGE must contain besides the nonce."""
    return hmac.digest(key, b"acceptor" + said + nonce, "sha256")


def run_id(run: str) -> bytes:
    """The run's name on the data plane."""
    return hashlib.sha256(f"pccl/1 {run}".encode()).digest()[:16]


def data_key(secret: bytes, run: str) -> bytes:
    """The engine's key."""
    return hmac.digest(secret, f"pccl/1 {run} data".encode(), "sha256")


@dataclass
class Frame:
    """A frame's header; the checksum is made when it is packed."""

    type: int
    payload_crc: int = 0
    payload_bytes: int = 0
    flags: int = 0
    step: int = 0
    epoch: int = 1
    boundary: int = 0
    lane: int = 0
    seq: int = 0
    shape: int = 0
    desc: int = 1
    offset: int = 0
    link_seq: int = 0
    link_ack: int = 0

    def pack(self) -> bytes:
        """64 bytes."""
        rest = struct.pack(
            "<IIBBHIIQIIQQII",
            *(self.payload_crc, self.payload_bytes, self.type, self.flags, self.step, self.epoch, self.boundary),
            *(self.lane, self.seq, self.shape, self.desc, self.offset, self.link_seq, self.link_ack),
        )
        return struct.pack("<I", crc32c(rest)) + rest


def receive(sock: socket.socket, count: int) -> bytes:
    """Exactly so many bytes, or fewer if the other side ends first."""
    data = b""
    try:
        while len(data) < count and (more := sock.recv(count - len(data))):
            data += more
    except ConnectionError:
        pass
    return data


def shake(sock: socket.socket, key: bytes, said: bytes) -> bool:
    """The dialler's side of a handshake. Whether the acceptor said READY."""
    sock.sendall(said)
    challenge = receive(sock, SIZES[CHALLENGE])
    if len(challenge) < SIZES[CHALLENGE]:
        return False
    assert challenge[40:72] == acceptor_mac(key, said, challenge[8:40])
    sock.sendall(proof(key, said, challenge))
    return receive(sock, SIZES[READY]) == message(READY, b"")
