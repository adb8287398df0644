"""Sweeps: one TOML file that expands to many experiments.

A sweep file has the keys of an experiment that all share, and a table `[sweep]`:

methods, tasks     lists of names
[[sweep.models]]   `model` (id), `name` (its short name in exp_name), `windows` and `targets` in tokens; every pair
[sweep.params.M]   parameters of method M that do not depend on window and target
[sweep.task.T]     keys of benchmark T

Experiments are named as the paper's authors name them, such as `dpi-llama2-7b-4k-to-16k`; the four benchmarks of one
setting share the name, as their results lie in different folders.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from pipeline.config import ExperimentConfig, build_config, describe
from tasks.errors import UserError

# SelfExtend's group and window for W = 8192, as the paper's authors give them in their configuration.
PUBLISHED_SELFEXTEND = {(8192, 16384): (3, 4096), (8192, 32768): (5, 2048)}


class SweepModel(BaseModel):
    """One model of a sweep with its windows and targets in tokens."""

    model_config = ConfigDict(extra="forbid")

    model: str
    name: str
    windows: list[PositiveInt] = Field(min_length=1)
    targets: list[PositiveInt] = Field(min_length=1)


class Sweep(BaseModel):
    """The table `[sweep]`."""

    model_config = ConfigDict(extra="forbid")

    methods: list[str] = Field(min_length=1)
    tasks: list[str] = Field(min_length=1)
    models: list[SweepModel] = Field(min_length=1)
    params: dict[str, dict[str, Any]] = Field(default_factory=dict)
    task: dict[str, dict[str, Any]] = Field(default_factory=dict)


def is_sweep(content: Mapping[str, Any]) -> bool:
    return "sweep" in content


def expand(content: Mapping[str, Any], source: str) -> list[ExperimentConfig]:
    """The experiments of a sweep file, those of one model and method behind each other. Raises `UserError`."""
    try:
        sweep = Sweep.model_validate(content["sweep"])
    except ValidationError as error:
        raise UserError(f"{source}: sweep: {describe(error, Sweep)}") from None
    shared = {key: value for key, value in content.items() if key != "sweep"}
    return [build_config({**shared, **keys}, f"{source}: {keys['exp_name']}") for keys in _combinations(sweep)]


def _combinations(sweep: Sweep) -> Iterator[dict[str, Any]]:
    for model in sweep.models:
        for window in model.windows:
            for target in model.targets:
                for method in sweep.methods:
                    name = experiment_name(method, model.name, window, target)
                    params = sweep.params.get(method, {}) | method_params(method, window, target)
                    for task in sweep.tasks:
                        yield {
                            "model": model.model,
                            "exp_name": name,
                            "method": method,
                            "task": task,
                            "ori_max_position_embeddings": window,
                            "max_pe": target,
                            "params": params,
                            **sweep.task.get(task, {}),
                        }


def experiment_name(method: str, model: str, window: int, target: int) -> str:
    """The authors' kind of name: the method without "repro_", the model, the window and the target in thousands."""
    return f"{method.removeprefix('repro_')}-{model}-{_kilo(window)}-to-{_kilo(target)}"


def _kilo(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)


def method_params(method: str, window: int, target: int) -> dict[str, Any]:
    """Parameters that follow from window and target: SelfExtend's published ones, else the smallest that reach.

    SelfExtend reaches (W - window) * group + window tokens, the NTK kinds and YaRN W * factor.
    """
    if method == "repro_se":
        if (window, target) in PUBLISHED_SELFEXTEND:
            group, neighbours = PUBLISHED_SELFEXTEND[window, target]
        else:
            neighbours = window // 2
            group = max(1, math.ceil((target - neighbours) / (window - neighbours)))
        return {"group_size": group, "window_size": neighbours}
    if method in ("repro_ntk", "repro_dynamic_ntk", "repro_yarn"):
        factor = max(1.0, target / window)
        return {"factor": int(factor) if factor.is_integer() else factor}
    return {}


def select(experiments: Sequence[ExperimentConfig], only: Sequence[str]) -> list[ExperimentConfig]:
    """Experiments whose exp_name, or task/exp_name, matches one of the names (shell wildcards allowed).

    No names: all. Raises `UserError` for a name that matches none.
    """
    for name in only:
        if not any(_matches(cfg, name) for cfg in experiments):
            raise UserError(f"--only {name!r} matches no experiment; --dry-run lists them")
    return [cfg for cfg in experiments if not only or any(_matches(cfg, name) for name in only)]


def _matches(cfg: ExperimentConfig, name: str) -> bool:
    return fnmatch.fnmatchcase(cfg.exp_name, name) or fnmatch.fnmatchcase(f"{cfg.task}/{cfg.exp_name}", name)
