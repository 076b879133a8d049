"""checkpoint.py - what of a checkpoint is not the inner optimizer's: the outer part and the replica's own.

The outer part is equal on all replicas and goes by parameter names, so that any replica's loads on any: Theta, the
outer optimizer's state, what the mode keeps, the position in the schedule. The own part: local parameters, inner steps
since the last sending, what the exchange keeps back. What is in flight is in neither: it is landed first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pccl.errors import ArgumentError
from pccl.optim.engine import OuterSync

__all__ = ["load", "load_own", "save", "save_own"]

_VERSION = 1
_COUNTERS = ("position", "landed", "crossed")


def save(sync: OuterSync) -> dict[str, Any]:
    """A copy of all that a replica needs to go on. ArgumentError while something is in flight."""
    if flying := sync.in_flight():
        raise ArgumentError(f"state_dict: {len(flying)} fragments are in flight; call flush() on all replicas first")
    entries = sync.entries()
    return {
        "version": _VERSION,
        "schedule": _schedule(sync),
        "step": sync.step,
        **{name: entries[name] for name in _COUNTERS},
        "theta": {name: view.clone() for fragment in sync.fragments for name, view in fragment.theta_by_name().items()},
        "state": {name: _copy(value) for fragment in sync.fragments for name, value in fragment.outer_state().items()},
        "mode": [
            {name: value.clone() for name, value in sync.rounds.shared(fragment).items()} for fragment in sync.fragments
        ],
    }


def load(sync: OuterSync, saved: dict[str, Any]) -> None:
    """Takes over what `save` made. ArgumentError, before anything is changed, for what does not fit this replica."""
    if saved.get("version") != _VERSION:
        raise ArgumentError(f"load_state_dict: version {saved.get('version')!r} is not {_VERSION}")
    if sync.in_flight():
        raise ArgumentError("load_state_dict: fragments are in flight; call flush() on all replicas first")
    _fits("schedule", _schedule(sync), saved["schedule"])
    for fragment in sync.fragments:
        for name, view in fragment.theta_by_name().items():
            if name not in saved["theta"]:
                raise ArgumentError(f"load_state_dict: no parameter {name!r} in what was saved")
            _fits(f"shape of {name!r}", tuple(view.shape), tuple(saved["theta"][name].shape))
        for name in fragment.outer_state():
            if name not in saved["state"]:
                raise ArgumentError(f"load_state_dict: no outer state {name!r} in what was saved")
    for fragment, mode in zip(sync.fragments, saved["mode"], strict=True):
        for name, view in fragment.theta_by_name().items():
            view.copy_(saved["theta"][name])
        fragment.load_outer_state(saved["state"])
        for name, value in sync.rounds.shared(fragment).items():
            value.copy_(mode[name])
        fragment.write(fragment.theta)
    sync.resume(saved["position"], saved["step"], saved["landed"], saved["crossed"])


def save_own(sync: OuterSync) -> dict[str, Any]:
    """A copy of what only this replica knows."""
    parameters = [torch.empty(fragment.numel) for fragment in sync.fragments]
    for fragment, flat in zip(sync.fragments, parameters, strict=True):
        fragment.read(flat)
    kept = [{name: tensor.clone() for name, tensor in sync.rounds.own(f).items()} for f in sync.fragments]
    return {"parameters": parameters, "inner_steps": list(sync.inner_steps), "exchange": kept}


def load_own(sync: OuterSync, saved: dict[str, Any]) -> None:
    """Takes over what `save_own` made, after `load`."""
    for fragment, flat, kept in zip(sync.fragments, saved["parameters"], saved["exchange"], strict=True):
        fragment.write(flat)
        for name, tensor in sync.rounds.own(fragment).items():
            tensor.copy_(kept[name])
    sync.inner_steps = list(saved["inner_steps"])


def _schedule(sync: OuterSync) -> tuple[int, int, int]:
    schedule = sync.schedule
    return (schedule.every, schedule.fragments, schedule.overlap)


def _fits(what: str, own: object, saved: object) -> None:
    if own != saved:
        raise ArgumentError(f"load_state_dict: {what} is {own} here and {saved} in what was saved")


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
