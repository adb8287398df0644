import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline import sweep
from pipeline.config import read_toml
from pipeline.paper import Setting, settings
from tasks import get_task
from tests.pipeline.scored import LONGBENCH, collect, experiment

ROOT = Path(__file__).resolve().parents[2]


def test_every_row_is_of_an_experiment_of_the_sweep_and_of_known_data_sets() -> None:
    path = ROOT / "expcfg" / "paper.toml"
    swept = {
        (cfg.task, Path(cfg.model).name, cfg.options.ori_max_position_embeddings, cfg.options.max_pe, cfg.method)
        for cfg in sweep.expand(read_toml(path), str(path))
    }
    for entry in settings():
        if entry.task != "pg19":
            assert set(entry.columns) <= set(get_task(entry.task).known_datasets())
        for method in entry.scores:
            if entry.window != entry.target:  # the original within its window
                assert (entry.task, entry.model, entry.window, entry.target, method) in swept
            else:
                assert method == "repro_original"
    assert len({(e.task, e.model, e.window, e.target) for e in settings()}) == len(settings())


@pytest.mark.parametrize(
    ("task", "model", "window", "target", "method", "average"),
    [  # as the tables print them
        ("longbench", "Meta-Llama-3-8B-Instruct", 4096, 16384, "dpi", 46.22),
        ("longbench", "Meta-Llama-3-8B-Instruct", 8192, 16384, "repro_ntk", 32.07),
        ("longbench", "Meta-Llama-3-8B-Instruct", 8192, 32768, "repro_se", 45.28),
        ("longbench", "Llama-2-7b-chat-hf", 4096, 16384, "repro_yarn", 22.22),
        ("leval", "Meta-Llama-3-8B-Instruct", 4096, 16384, "dpi", 59.21),
        ("leval", "Llama-2-7b-chat-hf", 4096, 16384, "repro_chunkllama", 37.42),
        ("leval", "Meta-Llama-3-8B-Instruct", 8192, 32768, "repro_yarn", 57.96),
    ],
)
def test_rows_have_the_printed_averages(
    task: str, model: str, window: int, target: int, method: str, average: float
) -> None:
    [row] = [
        entry.scores[method]
        for entry in settings()
        if (entry.task, entry.model, entry.window, entry.target) == (task, model, window, target)
    ]
    assert math.fsum(row) / len(row) == pytest.approx(average, abs=0.011)


def test_a_row_that_is_not_whole_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"table 3, dpi: 2 numbers for 1 columns"):
        Setting(table=3, task="pg19", model="m", window=1, target=2, columns=["1024"], scores={"dpi": [1.0, 2.0]})


def rows_of(root: Path) -> list[list[str]]:
    lines = (root / "lb" / "pred" / "lb.md").read_text().splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]


def of_llama(folder: Path, model: str) -> None:
    run = json.loads((folder / "run.json").read_text())
    run["config"]["model"] = model
    (folder / "run.json").write_text(json.dumps(run))


def test_the_papers_row_stands_behind_the_last_experiment_of_its_setting(tmp_path: Path) -> None:
    for name in ("dpi-a", "dpi-b"):
        results = {"result.json": {"qasper": 40.0, "lcc": 50.0}}
        of_llama(experiment(tmp_path, LONGBENCH, name, "dpi", results), "/models/meta-llama-3-8b-instruct")
    experiment(tmp_path, LONGBENCH, "dpi-else", "dpi", {"result.json": {"qasper": 1.0}})
    collect(tmp_path, LONGBENCH)
    table = rows_of(tmp_path)
    assert [row[0] for row in table[2:]] == ["dpi-a", "dpi-b", "paper, table 1", "dpi-else"]
    row = dict(zip(table[0], table[4], strict=True))
    assert (row["qasper"], row["lcc"], row["status"]) == ("45.26", "56.84", "published")
    assert row["average"].startswith("51.05"), "over what was measured too"
    assert "arXiv 2502.02659v2" in (tmp_path / "lb" / "pred" / "lb.md").read_text()


@pytest.mark.parametrize(("method", "window"), [("dpi", 2048), ("pi", 4096), ("repro_original", 4096)])
def test_another_setting_has_no_row(tmp_path: Path, method: str, window: int) -> None:
    folder = experiment(tmp_path, LONGBENCH, "x", method, {"result.json": {"qasper": 40.0}}, window=window)
    of_llama(folder, "meta-llama/Meta-Llama-3-8B-Instruct")
    collect(tmp_path, LONGBENCH)
    assert [row[0] for row in rows_of(tmp_path)[2:]] == ["x"]
    assert "paper" not in (tmp_path / "lb" / "pred" / "lb.md").read_text()


def test_numbers_quoted_from_another_paper_say_so(tmp_path: Path) -> None:
    folder = experiment(tmp_path, LONGBENCH, "se", "repro_se", {"result.json": {"qasper": 40.0}}, window=8192)
    of_llama(folder, "meta-llama/Meta-Llama-3-8B-Instruct")
    collect(tmp_path, LONGBENCH)
    assert rows_of(tmp_path)[3][0] == "paper, table 1, quoted there"
