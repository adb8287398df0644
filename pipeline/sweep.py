"""Sweeps: one TOML file that expands to many experiments.

A sweep file has the keys of an experiment that all share, and a table `[sweep]`:

tasks              list of names
methods            likewise; all of them where the file names none
[[sweep.models]]   `model` (id), `name` (its short name in exp_name), `windows` and `targets` in tokens; every pair
[sweep.params.M]   the parameters of method M; without it, those that M itself has for a window and a target
[sweep.task.T]     keys of benchmark T

Experiments are named as the paper's authors name them, such as `dpi-llama2-7b-4k-to-16k`; the four benchmarks of one
setting share the name, as their results lie in different folders.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from models.mistakes import complaints, did_you_mean
from pipeline.config import ExperimentConfig, TaskName, build_config, unknown_keys
from tasks import get_task
from tasks.errors import UserError
from tasks.options import Positive

if TYPE_CHECKING:
    from models.DPI.methods import Method


MOST_EXPERIMENTS = 10_000


def _methods() -> dict[str, type[Method]]:
    """All methods by name, imported when they are asked for: PyTorch comes with them, which takes seconds."""
    from models.DPI.methods import METHODS

    return METHODS


def _known_method(name: str) -> str:
    known = _methods()
    if name not in known:
        raise ValueError(f"unknown method {name!r}{did_you_mean(name, known)} (methods: {', '.join(known)})")
    return name


MethodName = Annotated[str, AfterValidator(_known_method)]


class SweepModel(BaseModel):
    """One model of a sweep with its windows and targets in tokens."""

    model_config = ConfigDict(extra="forbid")

    model: str
    name: str
    windows: list[Positive] = Field(min_length=1)
    targets: list[Positive] = Field(min_length=1)


class Sweep(BaseModel):
    """The table `[sweep]`."""

    model_config = ConfigDict(extra="forbid")

    methods: list[MethodName] = Field(default_factory=lambda: list(_methods()), min_length=1)
    tasks: list[TaskName] = Field(min_length=1)
    models: list[SweepModel] = Field(min_length=1)
    params: dict[MethodName, dict[str, Any]] = Field(default_factory=dict)
    task: dict[TaskName, dict[str, Any]] = Field(default_factory=dict)


def is_sweep(content: Mapping[str, Any]) -> bool:
    """Whether a file's content expands to many experiments."""
    return "sweep" in content


SET_BY_SWEEP = {
    "model": "sweep.models",
    "exp_name": "the names in sweep.models",
    "method": "sweep.methods",
    "task": "sweep.tasks, and sweep.task.<task> for a benchmark's keys",
    "ori_max_position_embeddings": "windows in sweep.models",
    "max_pe": "targets in sweep.models",
    "params": "sweep.params.<method>",
}
"""Keys of an experiment that a sweep decides, and where."""


def expand(content: Mapping[str, Any], source: str, overrides: Collection[str] = ()) -> list[ExperimentConfig]:
    """The experiments of a sweep file, those of one model and method behind each other. Raises `UserError`.

    overrides: keys of the content that the command line gave; they win over those of a benchmark's table.
    """
    if decided := [key for key in SET_BY_SWEEP if key in content]:
        raise UserError(f"{source}: the sweep decides {decided[0]!r}; change {SET_BY_SWEEP[decided[0]]} instead")
    try:
        sweep = Sweep.model_validate(content["sweep"])
    except ValidationError as error:
        raise UserError(f"{source}: sweep: {'; '.join(complaints(error, Sweep.model_fields)[:3])}") from None
    pairs = sum(len(model.windows) * len(model.targets) for model in sweep.models)
    if (count := pairs * len(sweep.methods) * len(sweep.tasks)) > MOST_EXPERIMENTS:
        raise UserError(f"{source}: sweep: {count:,} experiments are more than {MOST_EXPERIMENTS:,}; split the file")
    for name, keys in sweep.task.items():
        if unknown := unknown_keys(get_task(name), keys):
            raise UserError(f"{source}: sweep.task.{name}: {unknown[0]}")
    shared = {key: value for key, value in content.items() if key != "sweep"}
    forced = {key: value for key, value in shared.items() if key in overrides}
    return [
        build_config({**shared, **keys, **forced}, f"{source}: {keys['exp_name']}") for keys in _combinations(sweep)
    ]


def _combinations(sweep: Sweep) -> Iterator[dict[str, Any]]:
    for model in sweep.models:
        for window in model.windows:
            for target in model.targets:
                for method in sweep.methods:
                    name = experiment_name(method, model.name, window, target)
                    params = _params(sweep, method, window, target)
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


def _params(sweep: Sweep, method: str, window: int, target: int) -> dict[str, Any]:
    """The method's parameters: those of its table where there is one, else its own for window and target."""
    given = sweep.params.get(method)
    return _methods()[method].params_for(window, target) if given is None else given


def select(experiments: Sequence[ExperimentConfig], only: Sequence[str]) -> list[ExperimentConfig]:
    """Experiments whose exp_name, or task/exp_name, matches one of the names (shell wildcards allowed).

    No names: all. Raises `UserError` for a name that matches none.
    """
    for name in only:
        if not any(_matches(cfg, name) for cfg in experiments):
            near = did_you_mean(
                name, {known for cfg in experiments for known in (cfg.exp_name, f"{cfg.task}/{cfg.exp_name}")}
            )
            raise UserError(f"--only {name!r} matches no experiment{near or '; --dry-run lists them'}")
    return [cfg for cfg in experiments if not only or any(_matches(cfg, name) for name in only)]


def _matches(cfg: ExperimentConfig, name: str) -> bool:
    return fnmatch.fnmatchcase(cfg.exp_name, name) or fnmatch.fnmatchcase(f"{cfg.task}/{cfg.exp_name}", name)
