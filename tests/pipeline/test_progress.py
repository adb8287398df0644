import csv
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.config import ExperimentConfig, build_config
from pipeline.progress import Progress, Times, Tracker, check_tracker
from tasks.errors import UserError


def config(**keys: Any) -> ExperimentConfig:
    return build_config(
        {"model": "m", "exp_name": "some", "method": "dpi", "task": "needle", "max_pe": 256, **keys}, ""
    )


def line(identity: str, prompt: int = 90, final: int = 100) -> dict[str, Any]:
    return {"id": identity, "pred": "x", "prefill_len": prompt, "final_len": final}


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: self.now)


def test_where_nobody_sees_a_bar_there_is_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock(monkeypatch)
    with Progress(61, "3/14 needle", show=True) as progress:
        for number in range(13):
            clock.now += 10
            progress("needle", line(str(number)), 10.0)
    assert [record.getMessage() for record in caplog.records] == [
        "3/14 needle: 6 of 61 records, 10 tokens/s, about 9 min left",
        "3/14 needle: 12 of 61 records, 10 tokens/s, about 8 min left",
    ]
    assert capsys.readouterr().err == "", "no bar"


def test_on_a_terminal_there_is_one_bar_with_the_time_that_remains(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(4, "3/14 needle", show=True) as progress:
        progress("needle", line("a"), 1.0)
        progress._bar.refresh()
    said = capsys.readouterr().err
    assert "3/14 needle:  25%" in said
    assert "1/4 [" in said
    assert "<" in said.partition("1/4 [")[2].partition("]")[0], "elapsed<remaining"
    assert "tokens/s" in said
    assert caplog.records == []
    with Progress(4, "needle", show=False) as progress:
        progress("needle", line("a"), 1.0)
    assert capsys.readouterr().err == "", "of several processes one shows"


def test_times_have_a_line_for_each_try_and_processes_have_files_of_their_own(tmp_path: Path) -> None:
    for rank, processes in ((0, 1), (0, 1), (2, 3)):
        with Times(tmp_path, rank, processes) as times:
            times("trec", line('a, "b"\n'), 1.23456)
            times("trec", {"id": "c", "error": "no memory"}, 2.0)
    rows = list(csv.reader((tmp_path / "times.csv").read_text().splitlines(keepends=True)))
    assert rows[0] == ["dataset", "id", "prompt_tokens", "new_tokens", "seconds", "failed"]
    assert (
        rows[1:3] == rows[3:] == [["trec", 'a, "b"\n', "90", "10", "1.235", "0"], ["trec", "c", "", "", "2.000", "1"]]
    )
    assert (tmp_path / "times-2.csv").exists()


def test_times_wait_for_the_folder_and_a_run_without_work_writes_none(tmp_path: Path) -> None:
    folder = tmp_path / "made later"
    with Times(folder, 1, 2) as times:
        folder.mkdir()
        assert list(folder.iterdir()) == []
        times("trec", line("a"), 1.0)
    assert (folder / "times-1.csv").read_text().count("\n") == 2


@pytest.mark.parametrize("package", ["trackio", "wandb"])
def test_a_tracker_gets_the_configuration_and_progress(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []
    module = ModuleType(package)
    module.init = lambda **keys: calls.append(("init", keys))  # type: ignore[attr-defined]
    module.log = lambda values: calls.append(("log", values))  # type: ignore[attr-defined]
    module.finish = lambda: calls.append(("finish", {}))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package, module)
    cfg = config(tracker=package)
    with Tracker(cfg, package) as tracker:
        tracker("needle", line("a"), 4.0)
        tracker("needle", {"id": "b", "error": "no memory"}, 1.0)
    assert [name for name, _ in calls] == ["init", "log", "log", "finish"]
    assert calls[0][1]["name"] == "needle/some"
    assert calls[0][1]["config"]["method"] == "dpi"
    wanted = {"dataset": "needle", "records": 2, "failed": 1, "tokens": 100, "tokens_per_second": 20.0, "seconds": 1.0}
    assert calls[2][1] == wanted


def test_a_tracker_that_is_not_installed_or_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.progress.importlib.util.find_spec", lambda name: None)
    check_tracker(config())
    with pytest.raises(UserError, match=r"tracker = 'wandb': .* pip install wandb"):
        check_tracker(config(tracker="wandb"))
    with pytest.raises(UserError, match="tracker"):
        config(tracker="tensorboard")


def test_a_tracker_changes_no_prediction_so_a_run_goes_on_without_it() -> None:
    assert "tracker" not in config(tracker="wandb").resumable_form()
