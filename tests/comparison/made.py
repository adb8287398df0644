"""Comparisons made of invented scores, without a model."""

from pathlib import Path

from comparison.probes import Item, Probe
from comparison.results import Comparison, Measured
from comparison.settings import Setting


def item(probe: Probe, number: int, *, chooses: bool = False) -> Item:
    return Item(f"{probe} {number}", probe, probe, 700, number / 10, chooses, ())


def measured(
    method: str, losses: list[float], keys: list[float], in_text: list[float], ruler: list[float], **params: float
) -> Measured:
    """Scores by item number; every reference has 1 nat for each tenth that its score is below 1."""
    groups = {"passkey": keys, "passkey_text": in_text, "ruler": ruler}
    scores = {f"{probe} {n}": mark for probe, marks in groups.items() for n, mark in enumerate(marks)}
    setting = Setting(method, params, 512, f"{method} {params}", default=not params)
    return Measured(
        setting,
        {f"loss {n}": loss for n, loss in enumerate(losses)},
        scores,
        {key: 10 * (1 - score) for key, score in scores.items()},
        seconds_per_1k=0.25,
    )


def comparison(
    folder: Path, settings: list[Measured], *, tune: bool = False, texts: int = 2, prompts: int = 2
) -> Comparison:
    """With as many items as said in every group, the even ones choosing where settings are tuned."""
    probes: tuple[Probe, ...] = ("passkey", "passkey_text", "ruler")
    items = [item("loss", n, chooses=tune and n % 2 == 0) for n in range(texts)]
    items += [item(probe, n, chooses=tune and n % 2 == 0) for probe in probes for n in range(prompts)]
    request = {"model": "tiny", "window": 512, "target": 4096, "tune": tune, "dtype": "float32", "attn_impl": "auto",
               "seed": 7, "trust_remote_code": False, "sizes": {"lengths": [700]}}  # fmt: skip
    record = {"request": request, "baseline": "dpi", "device": "CPU", "refused": []}
    return Comparison(folder, record, {one.setting.id: one for one in settings}, items)
