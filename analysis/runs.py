"""Benchmarks on one model, all methods in turn: scored experiments, without files and configurations."""

from __future__ import annotations

from collections.abc import Sequence

from tqdm.auto import tqdm

from analysis.study import Subject, each_method
from models.DPI.loading import device_name
from pipeline.engine import ModelEngine
from tasks import get_task
from tasks.base import Record, Task
from tasks.options import Options
from tasks.pictures.style import style_of
from tasks.results import COMPLETE, Experiment

ANSWER_TOKENS = 12
"""A pass key has six digits."""


def needles(subject: Subject) -> list[Experiment]:
    """Pass keys at the study's lengths and depths, greedy answers, one trial per cell; an experiment per method."""
    study, task = subject.study, get_task("needle")
    lengths = tuple(length / 1000 for length in study.needles)
    options = _options(subject, task, lengths=lengths, depths=study.depths, times=1, max_new_tokens=ANSWER_TOKENS)
    (dataset,) = task.datasets()
    return _run(subject, task, options, list(task.records(options, dataset)))


def perplexity(subject: Subject, texts: Sequence[str]) -> list[Experiment]:
    """Perplexity of the first L tokens, every W/4, in one pass over the longest length; an experiment per method."""
    study, task = subject.study, get_task("pg19")
    records = [{"id": str(nth), "text": text} for nth, text in enumerate(subject.long_enough(texts, study.longest))]
    return _run(subject, task, _options(subject, task, step=study.step), records)


def _options(subject: Subject, task: Task, **settings: object) -> Options:
    study = subject.study
    common = {"max_pe": study.longest, "ori_max_position_embeddings": study.window}
    return task.Options.model_validate({**common, **settings})


def _run(subject: Subject, task: Task, options: Options, records: Sequence[Record]) -> list[Experiment]:
    """Every method on the records of the task's only data set. The original is measured where it breaks, too."""
    (dataset,) = task.datasets()
    found = []
    for method, params in each_method(subject.study.methods(options.max_pe), task.label):
        engine = ModelEngine(subject.put(method, params, options.max_pe), subject.tokenizer)
        lines = [task.predict(engine, options, dataset, one) for one in tqdm(records, unit="record", leave=False)]
        results = task.score(options, {dataset: lines})
        scores = {file: task.columns(file, results) for file in task.result_files if file in results}
        experiment = Experiment(
            name=style_of(method).label,
            method=method,
            model=subject.study.model,
            window=subject.study.window,
            target=options.max_pe,
            params=params,
            status=COMPLETE,
            results=results,
            scores=scores,
            device=device_name(engine.model.device),
        )
        found.append(experiment)
    return found
