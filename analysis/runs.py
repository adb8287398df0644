"""Needles, perplexity and parameter sweeps on one model, all methods in turn, in the form that `pipeline` draws."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from analysis.study import Params, Subject, each_method
from benchmarks.losses import loss_beyond_window
from pipeline.config import ExperimentConfig, build_config
from pipeline.engine import ModelEngine
from pipeline.figures import style_of
from pipeline.report import COMPLETE, Experiment
from tasks.needle import NeedleTask
from tasks.pg19 import cumulative_losses, score_lines

ANSWER_TOKENS = 12
"""A pass key has six digits."""


def needles(subject: Subject) -> list[Experiment]:
    """Pass keys at the study's lengths and depths, greedy answers, one trial a cell; an experiment a method."""
    study = subject.study
    task = NeedleTask()
    lengths = [length / 1000 for length in study.needles]
    found = []
    for name, params in each_method(study.methods(study.longest), "needles"):
        cfg = _config(subject, name, params, task="needle", lengths=lengths, depths=study.depths, times=1,
                      max_new_tokens=ANSWER_TOKENS)  # fmt: skip
        engine = _engine(subject, cfg)
        records = list(task.records(cfg, "needle"))
        lines = [task.predict(engine, "needle", one) for one in tqdm(records, unit="prompt", leave=False)]
        found.append(_experiment(cfg, study.window, task.score(cfg, {"needle": lines})))
    return found


def perplexity(subject: Subject, texts: list[str]) -> list[Experiment]:
    """Perplexity of the first L tokens, every W/4, in one pass over the longest length; an experiment a method."""
    study = subject.study
    ids = subject.tokens(texts, study.longest)
    found = []
    for name, params in each_method(study.methods(study.longest), "perplexity"):
        cfg = _config(subject, name, params, task="pg19", step=study.step)
        engine = _engine(subject, cfg)
        losses = [engine.token_losses(one[0].tolist()) for one in tqdm(ids, unit="text", leave=False)]
        lines = [cumulative_losses(loss.double().tolist(), study.step) for loss in losses]
        found.append(_experiment(cfg, study.window, score_lines(lines, study.step)))
    return found


def sweep(
    subject: Subject, texts: list[str], length: int, settings: list[tuple[str, str, float, Params]]
) -> pd.DataFrame:
    """Mean loss beyond the window of `length` tokens, for settings (method, line, x, parameters), as a table.

    Its columns are method, line, x and loss. Raises ValueError for a setting that does not reach the length.
    """
    study = subject.study
    ids = subject.tokens(texts, length)
    rows = []
    for method, line, x, params in tqdm(settings, desc="sweep", unit="setting", leave=False):
        model = subject.put(method, params, length)
        loss = sum(loss_beyond_window(model, one, study.window) for one in ids) / len(ids)
        rows.append((method, line, x, loss))
    return pd.DataFrame(rows, columns=["method", "line", "x", "loss"])


def local_window_settings(window: int) -> list[tuple[str, str, float, Params]]:
    """GALI's ω as a share of W, chunk-free and in chunks of 3W/8."""
    shares = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
    chunks = {"chunk-free": 1, "chunk 3W/8": 3 * window // 8}
    return [
        ("dpi", line, share, {"local_window": int(share * window), "chunk_coe": chunk})
        for line, chunk in chunks.items()
        for share in shares
    ]


def chunk_settings(window: int) -> list[tuple[str, str, float, Params]]:
    """GALI's chunk as a multiple of W, for a small and a large ω."""
    chunks = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2)
    local_windows = {"ω = W/2": window // 2, "ω = W/16": window // 16}
    return [
        ("dpi", line, chunk, {"local_window": local_window, "chunk_coe": int(chunk * window)})
        for line, local_window in local_windows.items()
        for chunk in chunks
    ]


def group_settings(window: int, target: int) -> list[tuple[str, str, float, Params]]:
    """SelfExtend's group size, from the smallest that reaches the target, for three sizes of its neighbourhood."""
    settings = []
    for line, neighbours in (("w = W/4", window // 4), ("w = W/2", window // 2), ("w = 3W/4", 3 * window // 4)):
        least = math.ceil((target - neighbours) / (window - neighbours))
        for group in sorted({least, math.ceil(1.5 * least), 2 * least}):
            settings.append(("repro_se", line, float(group), {"group_size": group, "window_size": neighbours}))
    return settings


def _config(subject: Subject, method: str, params: Params, **settings: Any) -> ExperimentConfig:
    study = subject.study
    common = {"model": study.model, "ori_max_position_embeddings": study.window, "max_pe": study.longest}
    content = {**common, "exp_name": "notebook", "method": method, "params": params, **settings}
    return build_config(content, f"notebook, {method}")


def _engine(subject: Subject, cfg: ExperimentConfig) -> ModelEngine:
    """The subject with the configuration's method on it. The original is measured where it breaks, too."""
    model = subject.put(cfg.method, cfg.params, cfg.max_pe)
    return ModelEngine(cfg, model, subject.tokenizer)


def _experiment(cfg: ExperimentConfig, window: int, results: dict[str, Any]) -> Experiment:
    return Experiment(
        name=style_of(cfg.method)[0], method=cfg.method, model=cfg.model, window=window, target=cfg.max_pe,
        params=cfg.params, status=COMPLETE, results=results,
    )  # fmt: skip
