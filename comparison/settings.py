"""Which settings are compared: a method, its parameters, and the window that it is installed with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from models.DPI.methods import METHODS, Method, build_method

Check = Callable[[Method, int], None]
"""Raises ValueError where a model cannot run a method at a window of W tokens."""


@dataclass(frozen=True)
class Setting:
    """A method with parameters at a window.

    window: W of the installation, in tokens, which may be smaller than the model's. label: in tables and pictures.
    default: whether it is what the method runs at without tuning. measured: whether its numbers were measured on the
        model, which is what "auto" stands for; on which texts, by name; none: on Python's help.
    """

    method: str
    params: Mapping[str, Any]
    window: int
    label: str
    default: bool = False
    measured: bool = False
    measured_on: Sequence[str] = ()

    @property
    def id(self) -> str:
        """The same for the same setting, in every run."""
        return f"{self.method} {json.dumps(self.params, sort_keys=True)} W={self.window}"

    def build(self) -> Method:
        """The method with its parameters."""
        return build_method(self.method, self.params, self.window)


@dataclass(frozen=True)
class Refused:
    """A setting that cannot run, and why, in one line."""

    label: str
    reason: str


def plan(
    methods: Sequence[str], window: int, target: int, *, tune: bool, check: Check
) -> tuple[list[Setting], list[Refused]]:
    """The settings of these methods that reach `target` tokens from a model's window of W, and those that do not.

    tune: the methods' grids, else their defaults alone. Each setting once, a method's default first.
    """
    found: list[Setting] = []
    refused: dict[tuple[str, str], Refused] = {}
    for name in methods:
        method = METHODS[name]
        default = Setting(name, method.params_for(window, target), window, method.label, default=True)
        wanted = {default.id: default}
        for smaller in method.tuning_windows(window) if tune else ():
            for params in method.tuning_grid(smaller, target):
                setting = Setting(name, params, smaller, method.label)
                wanted.setdefault(setting.id, setting)
        good = []
        for setting in wanted.values():
            try:
                check(build_method(name, setting.params, setting.window, target), setting.window)
            except ValueError as error:
                refused.setdefault((method.label, str(error)), Refused(method.label, str(error)))
            else:
                good.append(setting)
        found += _labelled(good)
    return found, list(refused.values())


def _labelled(settings: Sequence[Setting]) -> list[Setting]:
    """Settings of one method, told apart by what they differ in."""
    names = list(dict.fromkeys(name for setting in settings for name in setting.params))
    told = [name for name in names if len({repr(one.params.get(name)) for one in settings}) > 1]
    windows = len({setting.window for setting in settings}) > 1
    labels = []
    for setting in settings:
        parts = [f"W {setting.window}"] if windows else []
        parts += [f"{name} {_said(setting.params[name])}" for name in told if name in setting.params]
        labels.append(", ".join([setting.label, *parts]))
    return [replace(setting, label=label) for setting, label in zip(settings, labels, strict=True)]


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_said, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def default_of(settings: Iterable[Setting], method: str) -> Setting | None:
    """The default of a method among settings, or its first where that cannot run."""
    own = [setting for setting in settings if setting.method == method]
    return next((setting for setting in own if setting.default), own[0] if own else None)
