"""Chaos: real processes on the emulated WAN, a seeded schedule of faults, and a checker of every promise.

`contents.py` says what peers call and what must come of it, `peer.py` calls it, `hub.py` is the coordinator's process,
`schedule.py` decides the faults, `faults.py` commits them, `crew.py` runs everything, `history.py` reads what was
written down, `checker.py` judges it, `report.py` shows it.
"""
