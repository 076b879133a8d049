"""scenarios.py - named experiments."""

from __future__ import annotations

from typing import Any

SCENARIOS: dict[str, Any] = {}
