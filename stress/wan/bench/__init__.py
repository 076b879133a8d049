"""All-reduce on emulated WANs, ours and gloo's in turn, with the physical bound beside: `python -m stress.wan.bench`.

`scenarios.py` says what is measured and what is wanted of it; `crew.py` runs `worker.py` at the sites; `measure.py`
takes the samples, `rows.py` makes a row of figures of them, `targets.py` judges it, `report.py` and `plot.py` show it.
"""
