"""Benchmarks of pccl.kv: over loopback, over an emulated WAN, and a storm of aborts."""
