"""calls.py - whether the other side can be dialled at an address: a connection, and the proof that it is the other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from pccl.addresses import split
from pccl.doctor.connection import connect, introduce
from pccl.doctor.errors import Unreachable
from pccl.doctor.facts import Call, Outcome, Role
from pccl.doctor.handshake import NONCE_BYTES, Hello, Purpose
from pccl.doctor.host import plain
from pccl.errors import PcclError, Timeout

__all__ = ["CALL_S", "call_all"]

CALL_S = 4.0


async def call_all(by: Role, addresses: Sequence[str], key: bytes, session: bytes) -> tuple[Call, ...]:
    """Dials all of them at once; at most CALL_S seconds and a handshake's. Never raises for what the network does."""
    return tuple(await asyncio.gather(*(_call(by, address, key, session) for address in addresses)))


async def _call(by: Role, address: str, key: bytes, session: bytes) -> Call:
    try:
        host, port = split(address)
        connection = await connect(host, port, CALL_S, numeric=True)
    except Timeout as error:
        return Call(by, address, "timeout", plain(str(error)))
    except PcclError as error:
        return Call(by, address, _outcome(error), plain(str(error)))
    try:
        await introduce(connection, key, Hello(Purpose.CALL, session, 0, os.urandom(NONCE_BYTES)))
    except PcclError as error:
        return Call(by, address, "stranger", plain(str(error)))
    finally:
        connection.close()
    return Call(by, address, "ok", "")


def _outcome(error: PcclError) -> Outcome:
    refused = isinstance(error, Unreachable) and isinstance(error.__cause__, ConnectionRefusedError)
    return "refused" if refused else "unreachable"
