"""An experiment's table as `config`: its window and target are taken where no argument says them."""

import tomllib
from types import ModuleType
from typing import Any

import pytest
from transformers import LlamaConfig

from models.DPI import dpi, dpi_withoutflash
from models.DPI.config_mapping import split_config
from models.DPI.patches.Llama import installation_of
from pipeline.config import ExperimentConfig
from tasks import get_task, task_names
from tests.conftest import ROOT

TABLE: dict[str, Any] = tomllib.loads((ROOT / "expcfg/quickstart/needle.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", [dpi, dpi_withoutflash])
def test_a_table_sets_the_window(module: ModuleType) -> None:
    table = TABLE | {"ori_max_position_embeddings": 384}
    model, _ = module.get_model_and_tokenizer("tiny", table, table["method"], table["params"], device="cpu")
    installation = installation_of(model)
    assert installation is not None
    assert installation.rope.window == 384
    assert model.config.max_position_embeddings == 512


@pytest.mark.parametrize("module", [dpi, dpi_withoutflash])
def test_a_table_sets_the_target(module: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"4,?096"):
        module.get_model_and_tokenizer("tiny", TABLE | {"max_pe": 4096}, "repro_ntk", {"factor": 2.0}, device="cpu")


def test_arguments_go_before_the_table() -> None:
    table = {"ori_max_position_embeddings": 384, "max_pe": 4096, "times": 3, "test": False}
    assert split_config(table, None, None) == (None, 384, 4096)
    assert split_config(table, 256, None) == (None, 256, 4096)
    assert split_config(table, None, 1024) == (None, 384, 1024)
    assert split_config({"task": "needle"}, None, None) == (None, None, None)


def test_every_key_of_an_experiment_may_stand_in_a_table() -> None:
    keys = {
        *ExperimentConfig.model_fields,
        *(key for task in task_names() for key in get_task(task).Options.model_fields),
    }
    others = dict.fromkeys(keys - {"ori_max_position_embeddings", "max_pe"}, "x")
    assert split_config({**others, "max_pe": 9}, None, None) == (None, None, 9)


def test_a_configuration_of_transformers_passes() -> None:
    config = LlamaConfig(max_position_embeddings=77)
    assert split_config(config, None, 5) == (config, None, 5)
    assert split_config(None, 3, None) == (None, 3, None)


@pytest.mark.parametrize(
    ("config", "kind", "said"),
    [
        ({"max_pe": "16k"}, ValueError, "max_pe is '16k'; it must be a positive integer"),
        ({"ori_max_position_embeddings": 0}, ValueError, "ori_max_position_embeddings is 0"),
        ({"ori_max_position_embeddings": True}, ValueError, "ori_max_position_embeddings is True"),
        ({"max_pee": 4096}, ValueError, "unknown key 'max_pee'; did you mean 'max_pe'?"),
        ({"max_position_embeddings": 4096}, ValueError, "did you mean 'ori_max_position_embeddings'?"),
        (LlamaConfig().to_dict(), ValueError, "model_type = 'llama', .*AutoConfig.for_model"),
        ("expcfg/needle.toml", TypeError, "config is a str; give transformers' configuration"),
    ],
)
def test_what_else_is_refused_in_one_line(config: Any, kind: type[Exception], said: str) -> None:
    for module in (dpi, dpi_withoutflash):
        with pytest.raises(kind, match=said) as caught:
            module.get_model_and_tokenizer("tiny", config, "dpi", None)
        assert "\n" not in str(caught.value)
