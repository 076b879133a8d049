"""The registry of vLLM's engines, as its documentation describes it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


class WeightTransferEngineFactory:
    """Engines by the name of their backend: a class, or a module and the name of a class in it."""

    _registry: dict[str, Callable[[], type]] = {}

    @classmethod
    def register_engine(cls, name: str, module_path_or_cls: str | type, class_name: str | None = None) -> None:
        if name in cls._registry:
            raise ValueError(f"Weight transfer engine {name!r} is already registered.")
        if isinstance(module_path_or_cls, str):
            module, attribute = module_path_or_cls, str(class_name)
            cls._registry[name] = lambda: getattr(importlib.import_module(module), attribute)
        else:
            cls._registry[name] = lambda: module_path_or_cls

    @classmethod
    def create_engine(cls, config: Any, vllm_config: Any, device: Any, model: Any) -> Any:
        if config.backend not in cls._registry:
            raise ValueError(f"Invalid weight transfer backend: {config.backend}")
        return cls._registry[config.backend]()(config, vllm_config, device, model)
