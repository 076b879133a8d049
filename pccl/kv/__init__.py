"""KV caches across datacenters."""

from pccl.kv.errors import LayoutMismatch
from pccl.kv.layout import Group, Layout

__all__ = ["Group", "Layout", "LayoutMismatch"]
