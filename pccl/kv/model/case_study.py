"""case_study.py - the published case: an internal 1T hybrid-attention model on H200 (remote) and H20 (local) instances.

Table 5 of arXiv 2604.15039 for the H200. The H20's curve is not published; its tables imply the line given here. What
an instance decodes follows from Theta_pd-d = 3.91 with 5 instances.
"""

from __future__ import annotations

from pccl.kv.model.lengths import Lengths
from pccl.kv.model.profile import Profile
from pccl.kv.model.throughput import ThroughputModel

__all__ = ["DECODE_PER_S", "H20", "H200", "case_study", "prompt_lengths"]

_MIB = float(1 << 20)
_KV_BYTES = ((1024, 190.8 * _MIB), (8192, 308.9 * _MIB), (32768, 701.3 * _MIB), (131072, 2316.3 * _MIB))

H200 = Profile.of("H200", ((1024, 0.44), (8192, 0.72), (32768, 1.84), (131072, 7.40)), _KV_BYTES)
H20 = Profile.of("H20", ((0, 0.38), (131072, 0.38 + 0.141e-3 * 131072)), _KV_BYTES)
DECODE_PER_S = 0.782


def prompt_lengths() -> Lengths:
    """The case's uncached lengths: log-normal, cut off at 128 and 128K tokens, mean about 27K."""
    return Lengths.log_normal(9.90, 1.00, 128, 131072)


def case_study(bandwidth_bytes_per_s: float = 12.5e9) -> ThroughputModel:
    """4 remote instances, 8 local ones, 100 Gbit/s."""
    return ThroughputModel(H200, H20, 4, 8, DECODE_PER_S, bandwidth_bytes_per_s, prompt_lengths())
