"""What passes between stages as a file, typed: each document is written and read here alone.

    document.py     what all share: frozen fields, one way to write, one way to read and refuse
    sources.py      `Sources`: what fetch_sources brought
    data_card.py    `DataCard`: the splits of prepare_data
    training.py     `TeacherReport`, `StudentReport`, and a classifier's `Standing`
    history.py      the records of a training, a line each
    exported.py     `Contract`, `ExportReport`: what is served, and how it compares with torch
    evaluation.py   `Metrics`: teacher against student on the test split
    predictions.py  `Prediction`: what both said of each test example
    decision.py     `DecisionRecord`: what the gate decided

The cache's manifests are in tasks.kd.cache.format. No stage runs again for an edit of this room: a
document that is not as this version writes it is refused, with the command that makes it again.
"""
