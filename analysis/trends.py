"""Mean scores over target lengths, from whatever experiments a results folder holds."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pipeline import store
from pipeline.report import average, flatten, read_experiment
from tasks import get_task
from tasks.errors import UserError

COLUMNS = ["task", "model", "method", "experiment", "target", "score", "datasets", "complete"]


def collect_trends(results: Path, task_name: str) -> pd.DataFrame:
    """Scored experiments of a benchmark that know their target: one row each, `score` the mean over `datasets`.

    complete: whether every record has a prediction.
    """
    task = get_task(task_name)
    try:
        folders = store.list_experiments(results, task)
    except UserError:  # none yet
        folders = []
    rows = []
    for folder in folders:
        experiment = read_experiment(folder, task)
        if experiment.result is None or experiment.target is None:
            continue
        scores = flatten(experiment.result)
        mean = average(scores)
        if mean is not None:
            model = (experiment.model or "").rstrip("/").split("/")[-1]
            complete = not experiment.needs_mark
            rows.append((task_name, model, experiment.method, experiment.name, experiment.target, mean, len(scores),
                         complete))  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS).sort_values("target", kind="stable", ignore_index=True)
