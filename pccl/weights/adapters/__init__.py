"""Engines of inference, and how each takes an update: one file per engine, imported when it is asked for.

adapter = ModuleAdapter(model)
for update in rx.updates():
    install(update, adapter, paused=engine.paused)

docs/weights_adapters.md has a section per engine.
"""

from __future__ import annotations

from pccl.weights.adapters.engine import Adapter, EngineError, Installed, install

__all__ = ["Adapter", "EngineError", "Installed", "install"]
