"""Chaos: real processes on the emulated WAN, a seeded schedule of faults, and a checker of every promise.

`contents.py` says what peers call and what must come of it, `peer.py` calls it, `hub.py` is a coordinator's process,
`keeping.py` is where it keeps the run, `schedule.py` decides the faults, `run.py` commits them, `crew.py` has the
processes, `wallclock.py` their clocks, `history.py` reads what was written down, `checker.py` judges it, `report.py`
shows it.
"""
