"""SGLang's two schedulers, as far as they speak with a transfer backend: doubles that make real steps.

P: a request bootstraps until D has sent its pages; is computed in chunks, each sent when it is computed; and is
in flight until its sender has ended. D: a request finds its prefill server; gets memory when its receiver waits for
it; and is transferred until its receiver has ended. Polls are the lowest of all workers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sglang.srt.disaggregation.base.conn import KVPoll
from sglang.srt.disaggregation.utils import DisaggregationMode, KVClassType, get_kv_class
from sglang.srt.memory import Memory
from sglang.srt.server_args import ServerArgs


@dataclass
class Request:
    rid: str
    prompt: list[int]
    room: int
    ends: list[Any]  # a sender or receiver of each worker
    held: list[dict[str, list[int]]] = field(default_factory=list)
    prefix: int = 0
    sent: int = 0
    done: int = 0


class Workers:
    """What both engines have. `results`: of requests that have ended: the first token, or why there is none."""

    def __init__(
        self, backend: Any, mode: DisaggregationMode, args: ServerArgs, kinds: tuple[str, ...], page: int
    ) -> None:
        self.backend, self.args, self.page = backend, args, page
        self.results: dict[str, Any] = {}
        self.memories = [Memory(kinds, page, rank) for rank in range(args.tp_size)]
        made = get_kv_class(backend, KVClassType.MANAGER)
        self.managers = [made(memory.args(), mode, args, False) for memory in self.memories]

    def poll(self, request: Request) -> int:
        return min(int(end.poll()) for end in request.ends)

    def failed(self, request: Request) -> None:
        """Every worker asks why, then its memory is given back."""
        why = []
        for end in request.ends:
            try:
                end.failure_exception()
            except Exception as error:  # noqa: BLE001 - as the engine does
                why.append(error)
        self.release(request)
        for end in request.ends:
            end.clear()
        self.results[request.rid] = why

    def release(self, request: Request) -> None:
        for memory, held in zip(self.memories, request.held, strict=False):
            memory.give(held)

    def states(self, memory: Memory, held: dict[str, list[int]]) -> list[Any]:
        return [np.array(held[kind], np.int32) for kind in memory.kinds]

    def close(self) -> None:
        for manager in self.managers:
            manager.close()


class Prefill(Workers):
    """`chunk`: tokens that are computed in one step."""

    def __init__(
        self, backend: Any, args: ServerArgs, kinds: tuple[str, ...] = (), page: int = 4, chunk: int = 8
    ) -> None:
        server = get_kv_class(backend, KVClassType.BOOTSTRAP_SERVER)
        self.server = server(args.host, args.disaggregation_bootstrap_port)
        args.disaggregation_bootstrap_port = self.server.port
        super().__init__(backend, DisaggregationMode.PREFILL, args, kinds, page)
        self.chunk = chunk
        self.bootstrapping: list[Request] = []
        self.running: list[Request] = []
        self.inflight: list[Request] = []
        self.metrics: list[Any] = []

    @property
    def address(self) -> str:
        return f"{self.args.host}:{self.server.port}"

    def add(self, rid: str, prompt: list[int], room: int) -> Request:
        made = get_kv_class(self.backend, KVClassType.SENDER)
        ends = [
            made(mgr=manager, bootstrap_addr=self.address, bootstrap_room=room, dest_tp_ranks=[rank], pp_rank=0)
            for rank, manager in enumerate(self.managers)
        ]
        request = Request(rid, prompt, room, ends)
        self.bootstrapping.append(request)
        return request

    def step(self, compute: bool = True) -> None:
        for request in list(self.bootstrapping):
            self._bootstrap(request)
        for request in list(self.running) if compute else []:
            self._compute(request)
        for request in list(self.inflight):
            self._look(request)

    def _bootstrap(self, request: Request) -> None:
        poll = self.poll(request)
        if poll == KVPoll.Bootstrapping:
            return
        self.bootstrapping.remove(request)
        if poll == KVPoll.Failed:
            self.failed(request)
            return
        assert poll == KVPoll.WaitingForInput
        for memory, end in zip(self.memories, request.ends, strict=True):
            request.held.append(memory.take(len(request.prompt)))
            request.prefix = request.sent = end.pop_decode_prefix_len()
            end.init(-(-(len(request.prompt) - request.prefix) // self.page), request.held[-1]["aux"][0])
        self.running.append(request)

    def _compute(self, request: Request) -> None:
        begin, end = request.done, min(request.done + self.chunk, len(request.prompt))
        request.done = end
        last = end == len(request.prompt)
        until = end if last else end - end % self.page
        for memory, held, sender in zip(self.memories, request.held, request.ends, strict=True):
            memory.compute(request.prompt, begin, end, held)
            if last:
                memory.first_token(request.prompt, request.room, held)
            if until >= request.sent:
                pages = np.array(held["pages"][request.sent // self.page : -(-until // self.page)], np.int32)
                if sender.should_send_kv_chunk(len(pages), last):
                    sender.send(pages, self.states(memory, held) if last else None)
        request.sent = max(request.sent, until)
        if last:
            self.running.remove(request)
            self.inflight.append(request)

    def _look(self, request: Request) -> None:
        poll = self.poll(request)
        assert poll != KVPoll.Bootstrapping
        if poll == KVPoll.Failed:
            self.failed(request)
        elif poll == KVPoll.Success:
            self.metrics += [end.get_transfer_metric() for end in request.ends]
            self.release(request)
            for end in request.ends:
                end.clear()
            self.results[request.rid] = "sent"
        else:
            return
        self.inflight.remove(request)

    def close(self) -> None:
        super().close()
        self.server.close()


class Decode(Workers):
    """`alone`: the same, computed here, for comparison."""

    def __init__(self, backend: Any, args: ServerArgs, kinds: tuple[str, ...] = (), page: int = 4) -> None:
        super().__init__(backend, DisaggregationMode.DECODE, args, kinds, page)
        self.pending: list[tuple[Request, str]] = []
        self.waiting: list[Request] = []
        self.transferring: list[Request] = []
        self.alone = [Memory(kinds, page, rank) for rank in range(args.tp_size)]

    def add(self, rid: str, prompt: list[int], address: str, room: int, prefix: int = 0) -> Request:
        """`prefix`: so many of its tokens are here, in whole pages."""
        made = get_kv_class(self.backend, KVClassType.RECEIVER)
        ends = [made(mgr=manager, bootstrap_addr=address, bootstrap_room=room) for manager in self.managers]
        request = Request(rid, prompt, room, ends, prefix=prefix)
        self.pending.append((request, address))
        self.waiting.append(request)
        return request

    def step(self) -> None:
        for request, address in list(self.pending):
            if all(manager.try_ensure_parallel_info(address) for manager in self.managers):
                self.pending.remove((request, address))
                for manager, end in zip(self.managers, request.ends, strict=True):
                    info = manager.prefill_info_table[address]
                    end.init(request.room % info.dp_size if info.follow_bootstrap_room else 0)
        for request in list(self.waiting):
            self._preallocate(request)
        for request in list(self.transferring):
            self._look(request)

    def _preallocate(self, request: Request) -> None:
        poll = self.poll(request)
        if poll == KVPoll.Bootstrapping:
            return
        self.waiting.remove(request)
        if poll == KVPoll.Failed:
            self.pending = [one for one in self.pending if one[0] is not request]
            self.failed(request)
            return
        assert poll == KVPoll.WaitingForInput
        for memory, end in zip(self.memories, request.ends, strict=True):
            held = memory.take(len(request.prompt))
            request.held.append(held)
            if request.prefix:
                memory.compute(request.prompt, 0, request.prefix, {**held, "swa": [], "mamba": []})
            pages = np.array(held["pages"][request.prefix // self.page :], np.int32)
            end.send_metadata(pages, held["aux"][0], self.states(memory, held), decode_prefix_len=request.prefix)
        self.transferring.append(request)

    def _look(self, request: Request) -> None:
        poll = self.poll(request)
        if poll == KVPoll.Failed:
            self.failed(request)
        elif poll == KVPoll.Success:
            self._commit(request)
        else:
            return
        self.transferring.remove(request)

    def _commit(self, request: Request) -> None:
        for memory, alone, held in zip(self.memories, self.alone, request.held, strict=True):
            (slot,) = held["aux"]
            assert memory.aux[2].view(np.uint64)[slot, 0] == request.room
            mine = alone.take(len(request.prompt))
            alone.compute(request.prompt, 0, len(request.prompt), mine)
            alone.first_token(request.prompt, request.room, mine)
            assert memory.equals(alone, request.prompt, held, mine)
            assert all(
                (a[slot] == b[mine["aux"][0]]).all() or n == 0
                for n, (a, b) in enumerate(zip(memory.aux, alone.aux, strict=True))
            )
            self.results[request.rid] = int(memory.aux[0][slot, 0])
            alone.give(mine)
        self.release(request)
        for end in request.ends:
            end.clear()
