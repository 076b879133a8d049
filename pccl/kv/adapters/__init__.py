"""Adapters of pccl.kv to inference engines; none of them imports an engine before it is used by one."""
