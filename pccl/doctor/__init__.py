"""What lies between two machines, measured before a run is tried: the work behind ``pccl doctor``.

`examine` (client.py) goes to a `Listener` (listener.py) and gives `Measurements` (facts.py); `findings` (findings.py),
a pure function, says what they mean and what to change. Both sides prove that they know the run's secret before
anything else is said (handshake.py); docs/doctor.md tells what travels.
"""

from __future__ import annotations
