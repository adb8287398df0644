import zipfile
from pathlib import Path

import openpyxl
import pandas as pd
import pytest

from pipeline import store
from tests.pipeline.scored import LONGBENCH, PG19, SQUARES, collect, experiment


def test_excel_splits_ours_from_the_others_and_holds_parameters(tmp_path: Path) -> None:
    experiment(tmp_path, PG19, "dpi-x", "dpi", {"result.json": {"1024": 11.0, "2048": 12.5}}, params={"chunk_coe": 3})
    experiment(tmp_path, PG19, "yarn-x", "repro_yarn", {"result.json": {"1024": 13.0}}, params={"factor": 2})
    written = collect(tmp_path, PG19)
    assert set(written) == {"pg19_dpi.xlsx", "pg19_repro.xlsx", "pg19.md", "pg19.png"}
    ours, others = pd.read_excel(written["pg19_dpi.xlsx"]), pd.read_excel(written["pg19_repro.xlsx"])
    assert ours.to_dict("records") == [
        {
            "experiment": "dpi-x", "method": "dpi", "model": "some/model", "window": 4096, "target": 16384,
            "device": "CPU", "status": "complete", "chunk_coe": 3, 1024: 11, 2048: 12.5,
        }
    ]  # fmt: skip
    assert list(others["experiment"]) == ["yarn-x"]
    assert list(others["factor"]) == [2]
    assert others[2048].isna().all()


def test_a_parameter_named_like_a_column_has_its_own(tmp_path: Path) -> None:
    params = {"window": 3, "2048": 5, "chunk_coe": 1}
    experiment(tmp_path, PG19, "dpi-x", "dpi", {"result.json": {"1024": 11.0, "2048": 12.5}}, params=params)
    (row,) = pd.read_excel(collect(tmp_path, PG19)["pg19_dpi.xlsx"]).to_dict("records")
    assert (row["window"], row[2048], row["chunk_coe"]) == (4096, 12.5, 1)
    assert (row["params.window"], row["params.2048"]) == (3, 5)


def test_longbench_has_a_sheet_for_each_result_and_an_average(tmp_path: Path) -> None:
    results = {"result.json": {"qasper": 10.0, "lcc": 20.0}, "result_o.json": {"qasper": 4.0, "lcc": None}}
    experiment(tmp_path, LONGBENCH, "dpi-x", "dpi", results)
    sheets = pd.read_excel(collect(tmp_path, LONGBENCH)["lb_dpi.xlsx"], sheet_name=None)
    assert set(sheets) == {"result", "result_o"}
    assert sheets["result"]["average"].item() == 15
    assert sheets["result_o"]["average"].item() == 4


def markdown_rows(path: Path) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in path.read_text().splitlines()]


def test_intervals_stand_behind_their_scores_and_errors_where_no_interval_is_known(tmp_path: Path) -> None:
    known = {"a": {"score": 41.256, "stderr": 0.804, "count": 9, "interval": [39.0, 43.5]}, "b": 7.0}
    experiment(tmp_path, SQUARES, "dpi-x", "dpi", {"result.json": known})
    older = {"a": {"score": 3.0, "stderr": 0.5}, "b": 5.0}
    experiment(tmp_path, SQUARES, "dpi-y", "dpi", {"result.json": older})
    written = collect(tmp_path, SQUARES)
    frame = pd.read_excel(written["squares_dpi.xlsx"])
    assert list(frame.columns)[7:] == ["a", "a low", "a high", "a ±", "b", "average"]
    assert frame.iloc[:, 7:11].values.tolist() == [
        pytest.approx([41.256, 39.0, 43.5, float("nan")], nan_ok=True),
        pytest.approx([3.0, float("nan"), float("nan"), 0.5], nan_ok=True),
    ]
    assert frame["average"].tolist() == pytest.approx([24.128, 4])
    rows = markdown_rows(written["squares.md"])
    assert rows[0] == []
    assert rows[2] == ["experiment", "method", "model", "window", "target", "device", "status", "a", "b", "average"]
    assert rows[4][3:] == ["4096", "16384", "CPU", "complete", "41.26 [39.00, 43.50]", "7.00", "24.13"]
    assert rows[5][3:] == ["4096", "16384", "CPU", "complete", "3.00 ± 0.50", "5.00", "4.00"]
    text = written["squares.md"].read_text()
    assert "In brackets: 95 % confidence intervals." in text
    assert "Behind ±: standard errors" in text


def test_averages_over_different_numbers_of_scores_say_so(tmp_path: Path) -> None:
    experiment(tmp_path, SQUARES, "dpi-x", "dpi", {"result.json": {"a": 1.0, "b": 3.0}})
    experiment(tmp_path, SQUARES, "dpi-y", "dpi", {"result.json": {"a": 5.0, "b": 5.0}})
    written = collect(tmp_path, SQUARES)
    assert "averaged" not in pd.read_excel(written["squares_dpi.xlsx"]).columns
    assert "of 2" not in written["squares.md"].read_text()
    experiment(tmp_path, SQUARES, "dpi-z", "dpi", {"result.json": {"b": 3.0}})
    experiment(tmp_path, SQUARES, "dpi-zz", "dpi", {})
    written = collect(tmp_path, SQUARES)
    assert pd.read_excel(written["squares_dpi.xlsx"])["averaged"].tolist()[:3] == [2, 2, 1]
    assert [row[-1] for row in markdown_rows(written["squares.md"])[4:8]] == [
        "2.00 (of 2)", "5.00 (of 2)", "3.00 (of 1)", ""
    ]  # fmt: skip


def test_a_sheet_has_formats_widths_and_a_frozen_header(tmp_path: Path) -> None:
    scores = {"a": {"score": 41.256, "stderr": 0.8, "count": 9, "interval": [39.0, 43.5]}}
    name = "a-name-of-some-length-" * 2
    experiment(tmp_path, SQUARES, name, "dpi", {"result.json": scores}, params={"on": True, "o": 0.125})
    sheet = openpyxl.load_workbook(collect(tmp_path, SQUARES)["squares_dpi.xlsx"]).active
    assert sheet.freeze_panes == "B2"
    heads = {cell.value: cell.column_letter for cell in sheet[1]}
    formats = {head: sheet[f"{letter}2"].number_format for head, letter in heads.items()}
    assert {head: formats[head] for head in ("a", "a low", "average")} == {
        "a": "0.00",
        "a low": "0.00",
        "average": "0.00",
    }
    assert formats["window"] == "#,##0"
    assert (sheet[f"{heads['on']}2"].value, sheet[f"{heads['o']}2"].value) == (True, 0.125)
    widths = {head: sheet.column_dimensions[letter].width for head, letter in heads.items()}
    assert widths["experiment"] == len(name) + 2
    assert widths["a"] == len("41.26") + 2
    assert widths["window"] == len("window") + 2
    experiment(tmp_path, SQUARES, "x" * 90, "dpi", {"result.json": scores})
    sheet = openpyxl.load_workbook(collect(tmp_path, SQUARES)["squares_dpi.xlsx"]).active
    assert sheet.column_dimensions["A"].width == 60


def test_lengths_are_numbers_in_the_header(tmp_path: Path) -> None:
    experiment(tmp_path, PG19, "dpi-x", "dpi", {"result.json": {"1024": 1.0, "10240": 2.0}})
    sheet = openpyxl.load_workbook(collect(tmp_path, PG19)["pg19_dpi.xlsx"]).active
    assert [(cell.value, cell.data_type, cell.number_format) for cell in sheet[1]][-2:] == [
        (1024, "n", "#,##0"), (10240, "n", "#,##0")
    ]  # fmt: skip


def test_lengths_are_columns_in_numerical_order(tmp_path: Path) -> None:
    experiment(tmp_path, PG19, "dpi-x", "dpi", {"result.json": {"1024": 1.0, "10240": 2.0, "2048": 3.0}})
    frame = pd.read_excel(collect(tmp_path, PG19)["pg19_dpi.xlsx"])
    assert [*map(str, frame.columns)][-3:] == ["1024", "2048", "10240"]


@pytest.mark.parametrize("name", ["=1+1", "+x", "-x", "@SUM(A1)", "#REF!"])
def test_excel_takes_no_name_for_a_formula(tmp_path: Path, name: str) -> None:
    experiment(tmp_path, SQUARES, "dpi-x", "dpi", {"result.json": {name: 1.0}}, params={"=p": "=cmd|' /C calc'!A0"})
    path = collect(tmp_path, SQUARES)["squares_dpi.xlsx"]
    rows = list(openpyxl.load_workbook(path).active.iter_rows())
    found = {cell.value: cell for row in rows for cell in row}
    for value in (name, "=p", "=cmd|' /C calc'!A0"):
        assert found[value].data_type == "s"
        assert found[value].quotePrefix or value == "#REF!"
    assert not found["dpi-x"].quotePrefix
    with zipfile.ZipFile(path) as archive:
        assert b"<f>" not in archive.read("xl/worksheets/sheet1.xml")


def test_control_characters_and_markup_of_a_foreign_run_are_shown(tmp_path: Path) -> None:
    folder = tmp_path / LONGBENCH.folder / "evil|<b>\x1b[2J"
    folder.mkdir(parents=True)
    (folder / "qasper.jsonl").write_text('{"pred": "x"}\n')
    store.write_json(folder / "result.json", {"qasper": 3.25, "a\x00\ud800": 1.0})
    written = collect(tmp_path, LONGBENCH)
    markdown = written["lb.md"].read_text(encoding="utf-8")
    assert "| evil\\|&lt;b&gt;\\\\x1b\\[2J |" in markdown
    assert "\x1b" not in markdown
    frame = pd.read_excel(written["lb_repro.xlsx"])
    assert list(frame["experiment"]) == ["evil|<b>\\x1b[2J"]
    assert "a\\x00\\ud800" in frame.columns
