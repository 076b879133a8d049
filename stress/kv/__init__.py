"""Benchmarks of pccl.kv."""
