import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.DPI.methods import METHODS, methods_of_the_paper
from pipeline import sweep
from pipeline.checks import check_method
from pipeline.config import ExperimentConfig, build_config, read_toml
from tasks.errors import UserError

EXPCFG = Path(__file__).parents[2] / "expcfg"
PAPER = EXPCFG / "paper.toml"


def small(targets: Sequence[int] = (16384,), **table: object) -> list[ExperimentConfig]:
    """A sweep with some of its table changed."""
    models = [{"model": "m", "name": "n", "windows": [8192], "targets": targets}]
    return sweep.expand({"sweep": {"methods": ["dpi"], "tasks": ["needle"], "models": models, **table}}, "s.toml")


@pytest.fixture(scope="module")
def paper() -> list[ExperimentConfig]:
    return sweep.expand(read_toml(PAPER), str(PAPER))


def test_a_sweep_without_methods_runs_those_of_the_paper() -> None:
    path = EXPCFG / "quickstart" / "all_methods.toml"
    content = read_toml(path)
    assert "methods" not in content["sweep"]
    found = [(cfg.method, cfg.task) for cfg in sweep.expand(content, str(path))]
    assert found == [(method, task) for method in methods_of_the_paper() for task in ("needle", "pg19")]
    assert len(methods_of_the_paper()) == 7


def test_the_paper_expands_to_every_combination_once(paper: list[ExperimentConfig]) -> None:
    assert len(paper) == (1 * 3 + 3 * 3) * 7 * 4
    assert len({(cfg.task, cfg.exp_name) for cfg in paper}) == len(paper)
    assert Counter(cfg.task for cfg in paper) == dict.fromkeys(("longbench", "leval", "pg19", "needle"), 84)
    assert len({cfg.method for cfg in paper}) == 7


def test_names_are_the_authors_kind(paper: list[ExperimentConfig]) -> None:
    names = {cfg.exp_name: cfg for cfg in paper}
    for name, method, window, target in (
        ("dpi-llama2-7b-4k-to-16k", "dpi", 4096, 16384),
        ("se-llama3-8b-8k-to-32k", "repro_se", 8192, 32768),
        ("dynamic_ntk-llama3-8b-2k-to-8k", "repro_dynamic_ntk", 2048, 8192),
    ):
        cfg = names[name]
        assert (cfg.method, cfg.options.ori_max_position_embeddings, cfg.options.max_pe) == (method, window, target)


def test_every_method_of_the_paper_reaches_its_target(paper: list[ExperimentConfig]) -> None:
    for cfg in paper:
        check_method(cfg, cfg.options.ori_max_position_embeddings)


def test_experiments_of_one_model_and_method_follow_each_other(paper: list[ExperimentConfig]) -> None:
    """So that a model is loaded once for all its benchmarks."""
    keys = [(cfg.exp_name, cfg.model) for cfg in paper]
    assert sum(a != b for a, b in itertools.pairwise(keys)) == len(set(keys)) - 1


def test_published_selfextend_settings() -> None:
    found = {cfg.options.max_pe: cfg.params for cfg in small(methods=["repro_se"], targets=[16384, 32768])}
    assert found[16384] == {"group_size": 3, "window_size": 4096}
    assert found[32768] == {"group_size": 5, "window_size": 2048}


def test_a_table_of_parameters_stands_in_place_of_the_methods_own() -> None:
    params = {"dpi": {"noise_type": "uniform"}, "repro_chunkllama": {}}
    found = {cfg.method: cfg.params for cfg in small(methods=list(METHODS), params=params)}
    own = {name: method.params_for(8192, 16384) for name, method in METHODS.items()}
    assert found == {**own, **params}


@given(window=st.integers(2, 5000).map(lambda n: 2 * n), target=st.integers(1, 200_000))
def test_settings_are_the_smallest_that_reach(window: int, target: int) -> None:
    found = METHODS["repro_se"].params_for(window, target)
    if (window, target) in {(8192, 16384), (8192, 32768)}:  # the published ones
        return
    group, near = found["group_size"], found["window_size"]
    assert near == window // 2
    assert (window - near) * group + near >= target
    assert group == 1 or (window - near) * (group - 1) + near < target
    factor = METHODS["repro_yarn"].params_for(window, target)["factor"]
    assert window * factor >= target * (1 - 1e-12)
    assert factor == 1 or window * factor <= target * (1 + 1e-12)


def test_select_by_name_task_and_wildcard(paper: list[ExperimentConfig]) -> None:
    assert len(sweep.select(paper, [])) == len(paper)
    assert {cfg.task for cfg in sweep.select(paper, ["dpi-llama2-7b-4k-to-16k"])} == {
        "longbench",
        "leval",
        "pg19",
        "needle",
    }
    assert [cfg.task for cfg in sweep.select(paper, ["pg19/dpi-llama2-7b-4k-to-16k"])] == ["pg19"]
    assert len(sweep.select(paper, ["needle/*llama2*", "pg19/dpi-llama2-7b-4k-to-16k"])) == 22
    with pytest.raises(UserError, match="'dpi-nothing' matches no experiment"):
        sweep.select(paper, ["pg19/dpi-llama2-7b-4k-to-16k", "dpi-nothing"])


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"method": ["dpi"]}, "did you mean 'methods'"),
        ({"tasks": []}, "tasks"),
        ({"models": [{"model": "m", "name": "n", "windows": [0], "targets": [8]}]}, "models.0.windows.0 = 0"),
        ({"tasks": ["longbanch"]}, "did you mean 'longbench'"),
        ({"methods": ["gali"]}, "unknown method 'gali' (methods: dpi, "),
        ({"params": {"repro_yarm": {}}}, "did you mean 'repro_yarn'"),
        ({"task": {"needel": {}}}, "did you mean 'needle'"),
        ({"task": {"needle": {"tims": 3}}}, "did you mean 'times'"),
        ({"task": {"pg19": {"times": 3}}}, "sweep.task.pg19: unknown key 'times': it belongs to tasks needle and"),
    ],
)
def test_mistakes_in_a_sweep_are_named(table: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        small(**table)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key", ["model", "exp_name", "method", "task", "ori_max_position_embeddings", "max_pe", "params"]
)
def test_a_key_that_the_sweep_decides_is_refused_and_not_ignored(key: str) -> None:
    models = [{"model": "m", "name": "n", "windows": [8192], "targets": [16384]}]
    content = {"sweep": {"methods": ["dpi"], "tasks": ["needle"], "models": models}}
    for value in (3, {"x": 1}):
        with pytest.raises(UserError, match=f"the sweep decides '{key}'; change .*sweep"):
            sweep.expand({**content, key: value}, "s.toml")


def test_the_command_line_wins_over_a_benchmarks_table() -> None:
    models = [{"model": "m", "name": "n", "windows": [8192], "targets": [16384]}]
    table = {"methods": ["dpi"], "tasks": ["needle"], "models": models, "task": {"needle": {"times": 20}}}
    for keys, times in (((), 20), (("times",), 3)):
        [cfg] = sweep.expand({"times": 3, "sweep": table}, "s.toml", keys)
        assert cfg.flat()["times"] == times


def test_a_name_that_matches_nothing_gets_the_nearest(paper: list[ExperimentConfig]) -> None:
    with pytest.raises(UserError, match="did you mean 'dpi-llama2-7b-4k-to-16k'"):
        sweep.select(paper, ["dpi-lama2-7b-4k-to-16k"])


@pytest.mark.parametrize("path", sorted(EXPCFG.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    content = read_toml(path)
    if not sweep.is_sweep(content):
        cfg = build_config(content, path.name)
        check_method(cfg, cfg.options.ori_max_position_embeddings)
        assert path.stem.startswith(cfg.task)
        assert cfg.exp_name.startswith(cfg.method.removeprefix("repro_"))
