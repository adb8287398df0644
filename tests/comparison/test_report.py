"""Tables, Excel, pictures and configurations of invented scores."""

import tomllib
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest
from openpyxl import load_workbook
from rich.console import Console

from comparison import report
from comparison.pictures import draw_depths, draw_frontier
from comparison.results import Measured
from comparison.settings import plan
from models.DPI.methods import METHODS
from pipeline.checks import check_request
from pipeline.config import build_config, read_toml
from tests.comparison.made import comparison, measured


def test_all_files_are_written(tmp_path: Path) -> None:
    gali = measured("dpi", [2.0, 2.5], [1, 1], [1, 1], [0, 0], chunk_coe=1)
    chunked = measured("repro_chunkllama", [2.5, 3.5], [1, 0], [0, 1], [0, 0])
    broken = measured("repro_original", [9.0, 9.0], [0, 0], [0, 0], [0, 0])
    found = comparison(tmp_path, [gali, chunked, broken])
    console = Console(width=200, record=True, quiet=True)
    report.write_report(found, console)
    text = (tmp_path / report.TABLE_FILE).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    labels = [line.split("|")[1].strip().replace("\\", "") for line in lines[1:]]
    assert labels == ["dpi {'chunk_coe': 1}", "repro_chunkllama {} †", "repro_original {}"], (
        "by loss, what is not causal marked"
    )
    assert "+0.7500" in lines[2]
    assert "-0.333" in lines[2]
    frame = pd.read_excel(tmp_path / report.EXCEL_FILE, sheet_name="reported")
    assert list(frame["loss"]) == [2.25, 3.0, 9.0]
    assert list(frame["Δ retrieval"][1:]) == pytest.approx([-1 / 3, -2 / 3])
    for end in ("low", "high"):
        assert frame[f"Δ retrieval {end}"].notna().tolist() == [False, True, False], "none where all differ alike"
    assert frame["Δ retrieval low"][1] < -1 / 3 < frame["Δ retrieval high"][1]
    items = pd.read_excel(tmp_path / report.EXCEL_FILE, sheet_name="items")
    assert len(items) == 3 * len(found.items)
    for name in (report.FRONTIER_FILE, report.DEPTHS_FILE):
        assert matplotlib.image.imread(tmp_path / name).std() > 0.05


def test_the_original_models_loss_does_not_squeeze_the_others(tmp_path: Path) -> None:
    losses = {"dpi": 3.0, "pi": 3.01, "rerope": 3.02, "repro_original": 9.0}
    settings = [measured(name, [loss, loss], [1, 0], [1, 0], [0, 0]) for name, loss in losses.items()]
    figure = draw_frontier(comparison(tmp_path, settings))
    assert figure is not None
    [axis] = figure.axes
    assert axis.get_xlim()[1] < 3.2
    assert any("9.00" in text.get_text() for text in axis.texts)
    assert len(axis.lines) == len(settings) + 1


def test_six_settings_of_a_method_are_told_apart(tmp_path: Path) -> None:
    settings = [measured("dpi", [3.0 + n, 3.0 + n], [1, 0], [1, 0], [0, 0], local_window=n + 1) for n in range(6)]
    figure = draw_frontier(comparison(tmp_path, settings))
    assert figure is not None
    points = [line for line in figure.axes[0].lines if str(line.get_label()).startswith("dpi")]
    looks = {(p.get_fillstyle(), str(p.get_markerfacecolor()), str(p.get_markerfacecoloralt())) for p in points}
    assert len(points) == len(looks) == len(settings)


def test_without_complete_settings_there_is_no_picture(tmp_path: Path) -> None:
    nothing = measured("dpi", [], [], [], [])
    found = comparison(tmp_path, [nothing])
    assert draw_frontier(found) is None
    assert draw_depths(found) is None
    assert report.rows_of(found)[0].note == "baseline, incomplete"


@pytest.mark.parametrize("name", METHODS)
def test_the_toml_of_every_method_and_grid_is_one_of_pred(name: str, tmp_path: Path) -> None:
    window, target = 8192, 12_000
    found = comparison(tmp_path, [])
    found.request.update(model='owner/na"me', window=window, target=target)
    settings, _ = plan([name], window, target, tune=True, check=lambda method, window: None)
    assert settings
    for setting in settings:
        text = report.toml_of(found, Measured(setting), "lowest loss")
        path = tmp_path / "lowest_loss.toml"
        path.write_text(text, encoding="utf-8")
        cfg = build_config(read_toml(path), "made")
        check_request(cfg)
        assert (cfg.method, cfg.model, cfg.options.max_pe) == (name, 'owner/na"me', target)
        assert cfg.options.ori_max_position_embeddings == setting.window
        assert setting.build() == type(setting.build())(**cfg.params)
        assert tomllib.loads(text)["exp_name"] == "lowest-loss-to-12000"


def test_a_name_that_is_a_formula_stays_a_text(tmp_path: Path) -> None:
    found = comparison(tmp_path, [measured("dpi", [2.0, 2.5], [1, 1], [1, 1], [0, 0])])
    found.items[:] = [
        type(item)(**{**vars(item), "dataset": "=1+1"}) if item.probe == "loss" else item for item in found.items
    ]
    report.write_excel(tmp_path / "x.xlsx", found, report.rows_of(found))
    cells = [cell for row in load_workbook(tmp_path / "x.xlsx")["items"].iter_rows() for cell in row]
    assert [cell.data_type for cell in cells if cell.value == "=1+1"] == ["s", "s"]
