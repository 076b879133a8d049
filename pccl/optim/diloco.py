"""diloco.py - the public face: DiLoCo, a torch optimizer that wraps another, and `attach`, for one that others own.

Both make the same OuterSync (engine.py) and tell it of every inner step that was really made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pccl.errors import ArgumentError
from pccl.optim import checkpoint
from pccl.optim.engine import OuterSync, Use
from pccl.optim.flights import Flights
from pccl.optim.fragments import Schedule, Spec, split
from pccl.optim.gossip import Mixing, Pairs
from pccl.optim.line import Comm, Steps, drive
from pccl.optim.local import LocalComm
from pccl.optim.master import Fragment, Named, OuterFactory, named_parameters
from pccl.optim.rounds import Rounds
from pccl.optim.settings import Config, ModeName, OnFailure, Weight, resolve
from pccl.optim.shards import shards_of
from pccl.optim.stats import Round, Stats

__all__ = ["DiLoCo"]

Inner = torch.optim.Optimizer


class DiLoCo(torch.optim.Optimizer):
    """Trains with an outer optimizer over a group of replicas that average only now and then.

        comm = pccl.connect(...)                        # or LocalComm(n)[i], or None to train alone
        opt = DiLoCo(torch.optim.AdamW(model.parameters(), lr=3e-4), model, comm, every=500)
        for batch in data:
            loss(model, batch).backward(); opt.step(); opt.zero_grad()
        opt.flush()

    It is a torch.optim.Optimizer and shares `param_groups` and `state` with the inner one, so learning rate schedulers,
    GradScaler and trainers take it for that. `step()` counts the inner steps that are really made; after every `every`
    of them the parameters' change travels. The communicator's boundaries belong to it: do not call `comm.advance()`.

    Making one blocks until all replicas of the group make theirs, or, for a newcomer, until it holds what the others
    have: outer parameters, outer momentum, counters. So have model and data ready before `pccl.connect`. `model`'s
    parameters are overwritten with the group's.

    inner: a torch optimizer, or several (Muon and AdamW). model: a module, or (name, parameter) pairs; names must be
    equal on all replicas. Parameters may be of any floating dtype, on any device, and DTensors: then every shard index
    needs a communicator of its own group, and the shards of a replica decide alike over their device mesh: a replica
    counts in a round with all of its shards or with none, and weighs what they weigh on average.

    mode: "diloco" (arXiv 2311.08105); "localsgd"; "streaming" (2501.18512): `fragments` travel in turn, land `overlap`
    inner steps later, and `merge` of the local parameters is kept; "delayed": the mean lands one period late, weakened
    by `staleness_penalty` (after 2401.16265; the formula is ours, see modes.Delayed); "eager" (2502.12996): with its
    own fresh part, replicas differ and are averaged every `resync_every` periods; "gossip" (2506.10911): pairs instead
    of all, constants in `mixing`; "sparse" (2508.15706): `sparse` = (values kept per chunk, chunk, decay of what is
    left out).
    outer: makes the outer optimizer (Nesterov, HeavyBall, Average, ClippedMomentum, or any callable of parameters).
    fragments: a number, "strided:3", "sequential:3", "balanced:64MB" or a callable, see fragments.split.
    codec: of the wire, None or "bf16", "fp16", "int8", "e3m0"; sums are float32.
    weight: "uniform", "tokens" (see `add_tokens`), "steps", or a callable; 0 leaves this replica out of a mean.
    aggregate: "mean", or "rda", the radial-directional average (2604.21428).
    on_failure: of a round that is lost (too few peers, a deadline): "retry" it with the same delta after the next
    boundary, go on "local"ly without it, or "raise". A peer that dies never fails a round: the others go on without it.
    offload: outer parameters, outer state and the buffers of rounds, all float32, are in host memory. False: on the
    device of the parameters, where outer steps are faster and memory is dearer; on all replicas alike, and not for
    "gossip" and "sparse". Devices of different kinds may round differently, which the next boundary repairs.
    timeout: seconds that one op may take; None: the communicator's.

    A replica whose change holds a NaN or an infinity is left out of the mean and named in the round's `excluded`.

    Raises ArgumentError for arguments, MismatchError when replicas differ in model or arguments, and what collectives
    raise. After an error of `step()` the inner step has been made; parameters hold either what they held after it or a
    whole committed round.
    """

    def __init__(
        self,
        inner: Inner | Sequence[Inner],
        model: nn.Module | Iterable[Named],
        comm: Comm | None,
        *,
        every: int,
        outer: OuterFactory | None = None,
        fragments: Spec | None = None,
        overlap: int | Literal["full"] | None = None,
        merge: float = 0.0,
        codec: str | None = None,
        mode: ModeName = "diloco",
        weight: Weight = "uniform",
        aggregate: Literal["mean", "rda"] = "mean",
        mixing: Mixing | None = None,
        sparse: tuple[int, int, float] | None = None,
        staleness_penalty: float = 0.0,
        resync_every: int | None = None,
        on_failure: OnFailure = "retry",
        offload: bool = True,
        timeout: float | None = None,
    ) -> None:
        config = resolve(
            mode=mode, every=every, outer=outer, fragments=fragments, overlap=overlap, merge=merge, codec=codec,
            aggregate=aggregate, mixing=mixing, sparse=sparse, staleness_penalty=staleness_penalty,
            resync_every=resync_every, offload=offload, on_failure=on_failure, timeout=timeout,
        )  # fmt: skip
        self.inner = [inner] if isinstance(inner, Inner) else list(inner)
        if not self.inner:
            raise ArgumentError("inner: at least one optimizer is needed")
        self._weight, self._tokens = weight, 0
        super().__init__([group for one in self.inner for group in one.param_groups], {})
        self._share()
        group: Comm = LocalComm(1)[0] if comm is None else comm
        self._sync = _assemble(named_parameters(model), group, config, self._weigh)
        self._run(self._sync.enter())

    @classmethod
    @contextlib.contextmanager
    def attach(
        cls, inner: Inner, model: nn.Module | Iterable[Named], comm: Comm | None, **options: Any
    ) -> Iterator[DiLoCo]:
        """The same for an optimizer that somebody else owns and steps (a trainer): within the block every
        `inner.step()` counts. Options are those of DiLoCo. What is in flight at the end of the block is landed, unless
        it ends with an exception. Of accelerate's wrapper of an optimizer the steps that it passes on count. A trainer
        with callbacks needs TrainerHooks besides."""
        inner = _unwrapped(inner)
        sync = cls(inner, model, comm, **options)
        hooks = [
            inner.register_step_post_hook(lambda *_: sync._stepped()),
            inner.register_load_state_dict_post_hook(lambda _: sync._share()),
        ]
        try:
            yield sync
            sync.flush()
        finally:
            for hook in hooks:
                hook.remove()

    # -- torch.optim.Optimizer --

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the inner optimizer, and what of the outer one is due. Returns what the closure does. Blocks when
        a fragment lands until its mean has come, at most `timeout` seconds for each attempt; Ctrl-C interrupts."""
        first, *others = self.inner
        loss = first.step(closure)
        for inner in others:
            inner.step()
        self._stepped()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of all inner optimizers."""
        for inner in self.inner:
            inner.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """{"outer": what is equal on all replicas, by parameter names: any replica's loads on any other; "inner" and
        "own": this replica's}. Call `flush()` before: ArgumentError while something is in flight."""
        outer = checkpoint.save(self._sync)
        inner = [inner.state_dict() for inner in self.inner]
        return {"inner": inner, "outer": outer, "own": checkpoint.save_own(self._sync)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state_dict: the outer part, and the inner and own parts where they are there; without the own
        part the parameters become Theta. All replicas load, and load the same outer part. ArgumentError names what does
        not fit; nothing is changed then."""
        checkpoint.load(self._sync, state_dict["outer"])
        if "own" in state_dict:
            checkpoint.load_own(self._sync, state_dict["own"])
        for inner, state in zip(self.inner, state_dict.get("inner", ()), strict=False):
            inner.load_state_dict(state)
        self._share()

    # -- the outer side --

    @property
    def global_step(self) -> int:
        """Inner steps on the run's scale: a newcomer begins at the others'. For learning rate schedules."""
        return self._sync.step

    @property
    def stats(self) -> Stats:
        """Counters of this replica's rounds."""
        return self._sync.stats

    def add_round_hook(self, hook: Callable[[Round], None]) -> None:
        """Calls back after every committed round."""
        self._sync.on_round.append(hook)

    def add_tokens(self, number: int) -> None:
        """Counts tokens (or samples) that the next contribution stands for: its weight with weight="tokens"."""
        self._tokens += number
        self._sync.stats.tokens += number

    @contextlib.contextmanager
    def outer_params(self) -> Iterator[None]:
        """Within the block the model holds Theta, the parameters to evaluate and to publish."""
        kept = []
        for fragment in self._sync.fragments:
            local = fragment.take()
            fragment.read(local)
            fragment.write(fragment.theta)
            kept.append((fragment, local))
        try:
            yield
        finally:
            for fragment, local in kept:
                fragment.write(local)
                fragment.give(local)

    def skip_step(self) -> None:
        """Counts an inner step that changed nothing (GradScaler found infinities): replicas that skip different steps
        stay at one count, and do not wait for each other. Blocks as `step` does."""
        self._run(self._sync.skipped())

    def restart_from_outer(self) -> None:
        """The model's parameters become Theta: what somebody has written there since (a checkpoint) is forgotten."""
        for fragment in self._sync.fragments:
            fragment.write(fragment.theta)

    def flush(self) -> None:
        """Lands all that is in flight: before a checkpoint and at the end. All replicas call it after the same number
        of steps. Blocks."""
        self._run(self._sync.flush())

    def consensus(self) -> None:
        """`flush`, then the mean of all replicas: the end of a run whose replicas differ ("gossip", "eager"). All
        replicas call it after the same number of steps. Blocks."""
        self._run(self._sync.consensus())

    # -- the inside --

    def _stepped(self) -> None:
        self._run(self._sync.stepped())

    def _run(self, steps: Steps[None]) -> None:
        _, waited = drive(steps)
        self._sync.stats.wait_s += waited

    def _share(self) -> None:
        """`param_groups` and `state` are the inner optimizers' own; loading a state makes new ones there."""
        if len(self.inner) == 1:
            self.param_groups, self.state = self.inner[0].param_groups, self.inner[0].state
        else:
            self.param_groups = [group for inner in self.inner for group in inner.param_groups]
            self.state = _States(self.inner)  # type: ignore[assignment]

    def _weigh(self, steps: int) -> float:
        if self._weight == "uniform":
            return 1.0
        if self._weight == "steps":
            return float(steps)
        if self._weight == "tokens":
            tokens, self._tokens = self._tokens, 0
            return float(tokens)
        assert callable(self._weight)
        return self._weight()


class _States(Mapping[Tensor, Any]):
    """The states of several optimizers, as they are now."""

    def __init__(self, inner: Sequence[Inner]) -> None:
        self._inner = inner

    def __getitem__(self, parameter: Tensor) -> Any:
        for one in self._inner:
            if parameter in one.state:
                return one.state[parameter]
        raise KeyError(parameter)

    def __iter__(self) -> Iterator[Tensor]:
        return (parameter for one in self._inner for parameter in one.state)

    def __len__(self) -> int:
        return sum(len(one.state) for one in self._inner)


def _unwrapped(inner: Inner) -> Inner:
    """The optimizer that makes the steps: accelerate's wrapper is none that hooks can be registered with."""
    while isinstance(within := getattr(inner, "optimizer", None), Inner):
        inner = within
    return inner


def _assemble(parameters: list[Named], comm: Comm, config: Config, weigh: Callable[[int], float]) -> OuterSync:
    """Fragments, schedule, rounds and engine of a configuration."""
    sizes = [(name, parameter.numel() * 4) for name, parameter in parameters]
    fragments = [
        Fragment([parameters[i] for i in part], config.outer, config.offload) for part in split(config.fragments, sizes)
    ]
    schedule = Schedule(config.every, len(fragments), config.overlap)
    use = Use(
        on_failure=config.on_failure,
        timeout_s=config.timeout_s,
        boundary_every=config.boundary_every,
        drifting=config.drifting,
        resync_every=config.resync_every,
    )
    shards = shards_of((parameter for _, parameter in parameters), comm.peer_id)
    rounds: Rounds
    if config.mixing is not None:
        alone_too = config.on_failure != "raise"
        rounds = Pairs(comm, fragments, config.mixing, config.timeout_s, alone_too, shards)
    else:
        rounds = Flights(comm, fragments, config.exchange, config.algorithm, weigh, config.timeout_s, shards)
    return OuterSync(comm, fragments, schedule, rounds, use, shards)
