"""Every experiment of `expcfg/` is one that `pred.py` takes; recommended files differ from the authors' as they say."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.checks import check_method
from pipeline.config import build_config, read_toml
from pipeline.sweep import expand
from tests.conftest import ROOT

FILES = sorted((ROOT / "expcfg").rglob("*.toml"))
AUTHORS = sorted((ROOT / "expcfg").glob("*_llama[23]_16k_dpi.toml"))


def recommended(path: Path) -> Path:
    """The file beside an authors' one."""
    return path.with_name(f"{path.stem}_recommended.toml")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_valid(path: Path) -> None:
    """Keys, parameters, and that the method reaches the target."""
    content = read_toml(path)
    experiments = expand(content, str(path)) if "sweep" in content else [build_config(content, str(path))]
    assert experiments
    for cfg in experiments:
        window: Any = cfg.options.ori_max_position_embeddings
        assert window <= cfg.options.max_pe
        check_method(cfg, window)


def test_each_of_the_authors_files_has_a_recommended_one() -> None:
    tasks = ("leval", "longbench", "needle", "pg19")
    assert [path.name for path in AUTHORS] == [f"{task}_llama{n}_16k_dpi.toml" for task in tasks for n in (2, 3)]
    assert sorted((ROOT / "expcfg").glob("*_recommended.toml")) == sorted(map(recommended, AUTHORS))


@pytest.mark.parametrize("path", AUTHORS, ids=lambda path: path.stem)
def test_recommended_differs_in_name_and_parameters(path: Path) -> None:
    authors, ours = read_toml(path), read_toml(recommended(path))
    names = [table.pop("exp_name") for table in (authors, ours)]
    params = [table.pop("params") for table in (authors, ours)]
    assert ours == authors
    assert names[1] == names[0].replace("dpi-", "dpi-recommended-")
    assert (params[0]["chunk_coe"], params[0]["local_window"]) == (3000, 128)
    window = ours["ori_max_position_embeddings"]
    assert params[1] == {"chunk_coe": 1, "local_window": window // 4, "noise_type": "no"}
