"""Benchmarks of pccl.kv: over loopback, over an emulated WAN, of codecs, of deciding, and a storm of aborts."""
