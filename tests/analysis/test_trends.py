"""Trends take what a results folder has scored, and draw the best experiment of a target."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from analysis.trends import COLUMNS, collect_trends, draw
from pipeline import store
from tasks import get_task
from tasks.pictures.style import caption_in


def test_trends_take_what_is_scored(tmp_path: Path) -> None:
    def experiment(name: str, target: int, scores: dict[str, float] | None, expected: int = 1) -> None:
        folder = tmp_path / get_task("longbench").folder / name
        folder.mkdir(parents=True)
        config = {"task": "longbench", "method": "dpi", "model": "some/model", "max_pe": target, "params": {}}
        datasets = {"d": {"records": expected, "limited": False}}
        store.write_json(folder / "run.json", {"config": config, "window": 8, "datasets": datasets})
        (folder / "d.jsonl").write_text('{"id": "0"}\n')
        if scores:
            store.write_json(folder / "result.json", scores)

    experiment("b-32k", 32768, {"lcc": 30.0, "trec": 50.0})
    experiment("a-16k", 16384, {"lcc": 20.0}, expected=7)
    experiment("c-64k", 65536, None)
    found = collect_trends(tmp_path, "longbench")
    assert found[["target", "score", "datasets", "complete"]].values.tolist() == [
        [16384, 20, 1, False],
        [32768, 30, 1, True],  # over the data sets that both have
    ]
    assert set(found["model"]) == {"model"}
    assert found[["low", "high"]].isna().all().all()
    assert collect_trends(tmp_path, "leval").empty
    known = {"score": 30.0, "stderr": 2.0, "count": 5, "interval": [26.0, 33.0]}
    other = {**known, "score": 50.0, "interval": [46.0, 53.0]}
    results = tmp_path / get_task("longbench").folder / "b-32k"
    store.write_json(results / "result_detail.json", {"datasets": {"lcc": {"all": known}, "trec": {"all": other}}})
    row = collect_trends(tmp_path, "longbench").iloc[1]
    assert (row["low"], row["high"]) == (26, 33)
    store.write_json(tmp_path / get_task("longbench").folder / "a-16k" / "result.json", {"lcc": 20.0, "trec": 10.0})
    row = collect_trends(tmp_path, "longbench").iloc[1]
    assert (row["score"], row["datasets"]) == (40, 2)
    assert (row["low"], row["high"]) == pytest.approx((40 - 32**0.5 / 2, 40 + 18**0.5 / 2))


def test_trends_draw_the_best_of_a_target() -> None:
    rows = [
        ("longbench", "m", "dpi", "a", 2048, 16384, 20.0, 1, True, 9.0, 31.0, None),
        ("longbench", "m", "dpi", "b", 2048, 16384, 30.0, 1, False, 25.0, 36.0, "CPU"),
    ]
    figure = draw(pd.DataFrame(rows, columns=COLUMNS))
    assert caption_in(figure) == "CPU. Bars: 95 % intervals of the means. Hollow: of a part of the records."
    line, hollow = figure.axes[0].lines
    assert np.asarray(line.get_xydata()).tolist() == [[16, 30]]
    assert np.asarray(hollow.get_xydata()).tolist() == [[16, 30]]
    (bars,) = figure.axes[0].collections
    assert isinstance(bars, LineCollection)
    assert [part.tolist() for part in bars.get_segments()] == [[[16, 25], [16, 36]]]


def test_over_windows_the_original_is_a_level() -> None:
    rows = [
        ("longbench", "m", "dpi", "a", 2048, 8192, 20.0, 3, True, 9.0, 31.0, "an H100"),
        ("longbench", "m", "dpi", "b", 4096, 8192, 30.0, 3, True, 25.0, 36.0, "an H100"),
        ("longbench", "m", "repro_original", "c", 2048, 8192, 10.0, 3, True, 8.0, 12.0, "an H200"),
    ]
    figure = draw(pd.DataFrame(rows, columns=COLUMNS), over="window")
    assert caption_in(figure) == "an H100, an H200. Bars: 95 % intervals of the means."
    (axis,) = figure.axes
    original, gali, _ = axis.lines
    assert np.asarray(gali.get_xydata()).tolist() == [[2, 20], [4, 30]]
    assert list(original.get_ydata()) == [10, 10]
    assert axis.get_title() == "LongBench, m, target = 8,192"
