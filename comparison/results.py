"""A comparison read again: settings with their scores, and what is reported of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comparison import storage
from comparison.frontier import Point, Rule, recommended
from comparison.probes import RETRIEVAL, Item, Probe
from comparison.settings import Setting, default_of
from pipeline.files import read_json
from tasks.errors import UserError
from tasks.metrics.paired import paired_difference
from tasks.results import Score


@dataclass(frozen=True)
class Measured:
    """A setting with its scores by item: losses in nats, shares of right answers, nats of the reference."""

    setting: Setting
    losses: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    nlls: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    seconds_per_1k: float | None = None
    peak_gib: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Settings measured on items.

    folder: where it lies. request: as `request.json` has it. settings: all, by id, in their order. items: all, without
    tokens.
    """

    folder: Path
    record: dict[str, Any]
    settings: dict[str, Measured]
    items: list[Item]

    @property
    def request(self) -> dict[str, Any]:
        """What was asked for."""
        found: dict[str, Any] = self.record["request"]
        return found

    @property
    def tuned(self) -> bool:
        """Whether settings were chosen on one half of the items and are reported on the other."""
        return bool(self.request["tune"])

    def half(self, *, chooses: bool) -> list[Item]:
        """The items that settings are chosen on, or those that are reported."""
        return [item for item in self.items if item.chooses == chooses]

    def complete(self, one: Measured, items: Sequence[Item]) -> bool:
        """Whether a setting has a score for each of these."""
        return all(item.id in one.losses or item.id in one.scores for item in items if item.probe != "speed")

    def point(self, one: Measured, items: Sequence[Item]) -> Point:
        """Loss and retrieval over these items, which the setting has."""
        return Point(mean(self.losses(one, items)), mean(mean(group) for group in self.retrieval_groups(one, items)))

    def points(self, items: Sequence[Item], among: Iterable[str] | None = None) -> list[tuple[str, Point]]:
        """Of the settings that have all of these items, by id."""
        chosen = self.settings if among is None else among
        return [
            (key, self.point(self.settings[key], items)) for key in chosen if self.complete(self.settings[key], items)
        ]

    def losses(self, one: Measured, items: Sequence[Item]) -> list[float]:
        """By text."""
        return [one.losses[item.id] for item in items if item.probe == "loss"]

    def marks(self, one: Measured, items: Sequence[Item], probe: Probe) -> list[float]:
        """Shares of right answers."""
        return [one.scores[item.id] for item in items if item.probe == probe and item.id in one.scores]

    def nats(self, one: Measured, items: Sequence[Item], probe: Probe) -> list[float]:
        """Negative log-likelihoods of the references."""
        return [one.nlls[item.id] for item in items if item.probe == probe and item.id in one.nlls]

    def retrieval_groups(self, one: Measured, items: Sequence[Item]) -> list[list[float]]:
        """The marks of each group that has items; the retrieval score is the mean of their means."""
        return [marks for probe in RETRIEVAL if (marks := self.marks(one, items, probe))]

    def chosen(self) -> dict[str, dict[Rule, str]]:
        """For each method the ids of its settings by rule: on the choosing half with tuning, else its default."""
        items = self.half(chooses=True)
        found: dict[str, dict[Rule, str]] = {}
        for method in dict.fromkeys(one.setting.method for one in self.settings.values()):
            own = [key for key, one in self.settings.items() if one.setting.method == method]
            if self.tuned and (points := self.points(items, own)):
                found[method] = recommended(points)
        return found

    def reported(self) -> list[str]:
        """The ids of the settings that tables show: with tuning the methods' defaults and those that a rule chose,
        of one method or of all."""
        if not self.tuned:
            return list(self.settings)
        wanted = {key for rules in self.chosen().values() for key in rules.values()}
        wanted |= set(self.recommendations().values())
        return [key for key, one in self.settings.items() if key in wanted or one.setting.default]

    def recommendations(self) -> dict[Rule, str]:
        """The setting of each rule over all methods: chosen on the choosing half, without tuning on all items.

        Empty where no setting is complete.
        """
        points = self.points(self.half(chooses=self.tuned))
        return recommended(points) if points else {}

    def baseline(self) -> str | None:
        """The id of what others are compared with: with tuning the balanced setting of its method, else its default."""
        method = self.record["baseline"]
        rules = self.chosen().get(method)
        if rules is not None:
            return rules["balanced"]
        setting = default_of((one.setting for one in self.settings.values()), method)
        return None if setting is None else setting.id

    def differences(self, one: Measured, other: Measured) -> tuple[Score | None, Score | None]:
        """In loss and in retrieval on the reported items that both have."""
        items = [
            item
            for item in self.half(chooses=False)
            if all(item.id in each.losses or item.id in each.scores for each in (one, other))
        ]
        ours, theirs = self.losses(one, items), self.losses(other, items)
        loss = paired_difference([ours], [theirs]) if ours else None
        ours_by_group, theirs_by_group = (self.retrieval_groups(each, items) for each in (one, other))
        return loss, paired_difference(ours_by_group, theirs_by_group) if ours_by_group else None


def load(folder: Path | str) -> Comparison:
    """What `compare.py` wrote into a folder, finished or not. Raises `UserError` if there is nothing."""
    folder = Path(folder)
    path = folder / storage.REQUEST_FILE
    if not path.exists():
        raise UserError(f"{str(folder)!r} holds no comparison; compare.py --out {folder} writes one")
    record = read_json(path)
    settings = {setting.id: Measured(setting) for setting in storage.read_settings(folder)}
    with storage.none_missing():
        for line in storage.read_scores(folder):
            one = settings.get(line["setting"])
            if one is not None:
                _add(settings, one, line)
    return Comparison(folder, record, settings, storage.read_items(folder, with_tokens=False))


def _add(settings: dict[str, Measured], one: Measured, line: Any) -> None:
    item = line["item"]
    if "error" in line:
        one.errors[item] = line["error"]
    elif "loss" in line:
        one.losses[item] = line["loss"]
    elif "score" in line:
        one.scores[item], one.nlls[item] = line["score"], line["nll"]
    else:
        settings[one.setting.id] = Measured(
            one.setting, one.losses, one.scores, one.nlls, one.errors, line["seconds_per_1k"], line["peak_gib"]
        )


def mean(values: Iterable[float]) -> float:
    """NaN of nothing."""
    found = list(values)
    return math.fsum(found) / len(found) if found else math.nan
