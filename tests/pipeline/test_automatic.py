""" "auto" in a configuration: numbers from a measurement, a run record, or the first of several processes."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import pred
from pipeline import automatic, store
from pipeline.automatic import asked_of, settle
from pipeline.checks import check_start
from pipeline.distributed import Workers
from pipeline.dry_run import dry_run, list_experiments
from tasks.errors import UserError
from tests.pipeline.small import config

KEYS: dict[str, Any] = {
    "model": "tiny",
    "method": "dpi",
    "max_pe": 1024,
    "ori_max_position_embeddings": "auto",
    "params": {"local_window": "auto", "chunk_coe": "auto"},
    "times": 1,
    "lengths": [0.6],
    "depths": 2,
}
NUMBERS = {"ori_max_position_embeddings": 384, "params.local_window": 192, "params.chunk_coe": 1}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The windows that were measured; each is 384."""
    asked: list[int] = []

    def measure(cfg: Any, device: Any, window: int) -> dict[str, Any]:
        asked.append(window)
        return {"window": 384, "local_window": 192, "chunk_coe": 1, "reason": "so", "evidence": None}

    monkeypatch.setattr(automatic, "measured_window", measure)
    return asked


def test_numbers_take_the_place_of_auto(tmp_path: Path, measured: list[int]) -> None:
    cfg, note = settle(config(**KEYS), tmp_path, Workers())
    assert cfg.options.ori_max_position_embeddings == 384
    assert cfg.params == {"local_window": 192, "chunk_coe": 1}
    assert note is not None
    assert note["found"] == NUMBERS
    assert note["calibration"]["reason"] == "so"
    assert asked_of(cfg) == []
    assert measured == [512]
    assert settle(cfg, tmp_path, Workers()) == (cfg, None)


def test_parameters_alone_need_no_measurement(tmp_path: Path, measured: list[int]) -> None:
    for window, expected in ((None, 256), (300, 150)):
        cfg, note = settle(config(**KEYS | {"ori_max_position_embeddings": window}), tmp_path, Workers())
        assert cfg.params == {"local_window": expected, "chunk_coe": 1}
        assert cfg.options.ori_max_position_embeddings == window
        assert note == {"found": {"params.local_window": expected, "params.chunk_coe": 1}, "calibration": None}
    assert measured == []


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"method": "repro_ntk", "params": {"factor": 2}}, "window = 'auto': the method 'repro_ntk'"),
        ({"method": "lampe", "params": {"local_window": "auto"}, "ori_max_position_embeddings": 99}, "'lampe'.*'auto'"),
        ({"params": {"noise_type": "auto"}, "ori_max_position_embeddings": None}, "noise_type = 'auto'"),
        ({"tp_plan": "auto"}, "window = 'auto' does not go with tp_plan"),
        ({"params": {"local_window": 600}}, "local_window = 600 must be smaller"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_measured(
    tmp_path: Path, measured: list[int], keys: dict[str, Any], said: str
) -> None:
    cfg = config(**KEYS | keys)
    with pytest.raises(UserError, match=said):
        settle(cfg, tmp_path, Workers())
    assert measured == []


def test_a_target_between_the_measured_window_and_the_models_own(tmp_path: Path, measured: list[int]) -> None:
    cfg, _ = settle(config(**KEYS | {"max_pe": 450}), tmp_path, Workers())
    assert cfg.options.ori_max_position_embeddings == 384
    assert measured == [512]
    with pytest.raises(UserError, match="max_pe = 300 is below the window of 384"):
        check_start(settle(config(**KEYS | {"max_pe": 300}), tmp_path, Workers())[0])


def test_the_model_in_memory_goes_before_another_is_measured(tmp_path: Path, measured: list[int]) -> None:
    seen: list[list[int]] = []
    settle(config(**KEYS), tmp_path, Workers(), release=lambda: seen.append(list(measured)))
    assert seen == [[]]
    alone = config(**KEYS | {"ori_max_position_embeddings": None})
    settle(alone, tmp_path, Workers(), release=lambda: pytest.fail("nothing is measured"))


def test_the_key_knows_no_other_word() -> None:
    with pytest.raises(UserError, match=r"ori_max_position_embeddings = 'Auto'.*'auto'"):
        config(**KEYS | {"ori_max_position_embeddings": "Auto"})


def test_a_run_goes_on_with_the_numbers_that_it_began_with(
    tmp_path: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "auto.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in KEYS.items() if key != "params"]
    file.write_text("\n".join([*lines, 'exp_name = "a"', 'task = "needle"', "[params]", 'local_window = "auto"',
                               'chunk_coe = "auto"']))  # fmt: skip
    results = tmp_path / "results"

    def run(*more: str) -> dict[str, Any]:
        assert pred.main(["--cfg", str(file), "--results", str(results), *more]) == 0
        found = store.read_run(results / "needle" / "pred" / "a")
        assert found is not None
        return found

    first = run("--limit", "1")
    assert first["automatic"]["found"] == NUMBERS
    assert first["config"]["ori_max_position_embeddings"] == first["window"] == 384
    assert first["config"]["params"] == {"local_window": 192, "chunk_coe": 1}

    def other(*_: Any) -> dict[str, Any]:
        return {"window": 256, "local_window": 128, "chunk_coe": 1, "reason": "", "evidence": None}

    monkeypatch.setattr(automatic, "measured_window", other)
    experiments, _ = pred.read_experiments(file, [], [])
    list_experiments(experiments, results, Console(), file)  # as a sweep that was begun
    second = run()
    assert (second["config"]["params"], second["window"]) == (first["config"]["params"], 384)
    assert second["automatic"] == first["automatic"]
    assert second["datasets"]["needle"]["records"] == 2
    # Numbers that say the same go on too; others do not.
    numbers = ("--set", "ori_max_position_embeddings=384", "--set", "params.local_window=192", "--set")
    assert run(*numbers, "params.chunk_coe=1")["automatic"] == first["automatic"]
    with pytest.raises(UserError, match=r"params.chunk_coe was 1, is 2"):
        run(*numbers, "params.chunk_coe=2")
    # A record of another question, or a broken one, is no answer.
    path = results / "needle" / "pred" / "a" / store.RUN_FILE
    changes: list[Any] = [{"found": {}}, None]
    for change in changes:
        path.write_text(json.dumps({**second, "automatic": change}))
        with pytest.raises(UserError, match=r"params.local_window was 192, is 128"):
            run()
    assert run("--overwrite")["automatic"]["found"]["ori_max_position_embeddings"] == 256


def test_a_dry_run_measures_nothing(tmp_path: Path, measured: list[int]) -> None:
    console = Console(record=True, width=200)
    dry_run([config(**KEYS, exp_name="a")], tmp_path, console, Path("a.toml"))
    text = console.export_text()
    assert "window W 512" in text
    assert "a run measures it first" in text
    assert measured == []


def test_all_processes_get_what_the_first_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[list[Any]] = []

    def broadcast(values: list[Any], src: int, group: Any) -> None:
        if not workers.is_main:
            values[:] = sent[-1]
        else:
            sent.append(list(values))

    def first_only() -> int:
        assert workers.is_main
        return 7

    def fail() -> int:
        raise UserError("no such model")

    monkeypatch.setattr("pipeline.distributed.dist.broadcast_object_list", broadcast)
    for make in (first_only, fail):
        for rank in (0, 1):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", "2")
            workers = Workers()
            if make is fail:
                with pytest.raises(UserError, match="no such model"):
                    workers.from_first(make)
            else:
                assert workers.from_first(make) == 7
