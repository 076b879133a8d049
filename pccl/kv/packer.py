"""packer.py - the sender's parcels: which are encoded next, in how much memory, and from when to when they are served.

Parcels are encoded on a thread of its own, the most urgent transfer's first, as long as there is room for them; each is
a region of its own, gone when the receiver has taken it or the transfer has ended. Otherwise the thread of transfers
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pccl.errors import PcclError
from pccl.kv.binding import coded_key
from pccl.kv.choice import Ratios
from pccl.kv.ends import End, State
from pccl.kv.hasher import Hasher
from pccl.kv.machine import Stop
from pccl.kv.mail import Regions
from pccl.kv.memory import Array, Numbers
from pccl.kv.outbound import Outbound
from pccl.kv.schedule import in_order
from pccl.kv.send import Encode, Encoded, Free

__all__ = ["Packer"]

#: Plain bytes of all parcels that are there, and of one transfer's: at least one parcel.
STAGED_BYTES, STAGED_BYTES_EACH = 256 << 20, 64 << 20
#: Parcels that are with the other thread: what becomes urgent waits for so many.
AT_ONCE = 2


class Packer:
    """`event`: takes what a machine is to be told; `when_gone`: see Surroundings; `coder`: the other thread."""

    def __init__(
        self,
        regions: Regions,
        when_gone: Callable[[list[Any], Callable[[], None]], None],
        coder: Hasher,
        tell: Callable[[Callable[[], Any]], None],
        event: Callable[[Outbound, Any], None],
        clock: Callable[[], float],
    ) -> None:
        self._regions, self._when_gone, self._coder, self._tell = regions, when_gone, coder, tell
        self._event, self._clock = event, clock
        self._staged_bytes = 0
        self._at_once = 0
        self.ratios = Ratios()

    @property
    def crowded(self) -> bool:
        """Whether another transfer had better not wait for room."""
        return self._staged_bytes > STAGED_BYTES // 2

    def pump(self, sends: Iterable[Outbound], now: float) -> None:
        """Begins what there is room for."""
        for _, one in in_order(sends, now):
            while self._at_once < AT_ONCE and self._has_room(one):
                parcel = one.machine.next_parcel()
                if parcel is None:
                    break
                self._begin(one, parcel)

    def do(self, one: Outbound, effect: Free) -> None:
        """The receiver has taken a parcel."""
        self._withdraw(one, effect.number)

    def hide(self, one: Outbound) -> None:
        """The transfer has ended."""
        for number in list(one.parcels):
            self._withdraw(one, number)

    def _has_room(self, one: Outbound) -> bool:
        if not self._staged_bytes:
            return True
        return self._staged_bytes < STAGED_BYTES and one.parcel_bytes < STAGED_BYTES_EACH

    def _begin(self, one: Outbound, parcel: Encode) -> None:
        unit = parcel.unit
        nbytes = unit.part_bytes * int(parcel.parts.size)
        self._at_once += 1
        self._stage(one, nbytes)

        def step() -> None:
            try:
                data, sums = one.encode(unit, parcel.parts)
            except (PcclError, MemoryError) as error:
                end = End(State.FAILED, "no_space", f"a layer could not be encoded: {error}")
                self._tell(lambda: self._failed(one, parcel, nbytes, end))
                return
            self._tell(lambda: self._encoded(one, parcel, nbytes, data, sums))

        self._coder.do(step)

    def _encoded(self, one: Outbound, parcel: Encode, nbytes: int, data: Array, sums: Numbers) -> None:
        self._at_once -= 1
        if one.machine.end is None:
            group = one.match.groups[parcel.unit.group].group
            self.ratios.note(group, parcel.unit.codec, nbytes, data.size, self._clock())
            one.wire_bytes += data.size
            key = coded_key(one.transfer, parcel.number)
            region = self._regions.offer_region(key, 1, data, None, whole=True)
            one.parcels[parcel.number] = region, nbytes
        else:
            self._stage(one, -nbytes)
        self._event(one, Encoded(parcel, data.size, sums))

    def _failed(self, one: Outbound, parcel: Encode, nbytes: int, end: End) -> None:
        self._at_once -= 1
        self._stage(one, -nbytes)
        self._event(one, Stop(end, True))
        self._event(one, Encoded(parcel, 0, parcel.unit.sums.reshape(-1)[parcel.parts]))

    def _withdraw(self, one: Outbound, number: int) -> None:
        region, nbytes = one.parcels.pop(number)
        self._when_gone([region], lambda: self._tell(lambda: self._stage(one, -nbytes)))
        self._regions.quietly("withdraw", coded_key(one.transfer, number), 1)

    def _stage(self, one: Outbound, nbytes: int) -> None:
        self._staged_bytes += nbytes
        one.parcel_bytes += nbytes
