import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RUN_KEYS, apply_overrides, build_config, read_toml
from tasks import get_task, task_names
from tasks.errors import UserError
from tasks.options import Options
from tests.pipeline.small import config

BASE = {"model": "m", "exp_name": "e", "method": "dpi", "task": "needle", "max_pe": 16384}


def test_seed_keys_keep_their_names() -> None:
    keys = {"test": True, "ori_max_position_embeddings": 4096, "times": 3}
    built = build_config({**BASE, **keys, "min_k": 1, "max_k": 2.5, "gap": 0.5, "params": {"chunk_coe": 0.5}}, "f")
    options: Any = built.options
    assert (options.min_k, options.max_k, options.gap, options.times) == (1, 2.5, 0.5, 3)
    assert options.ori_max_position_embeddings == 4096
    assert built.params == {"chunk_coe": 0.5}
    assert built.test
    assert build_config({**BASE, "task": "pg19", "stride": 2000}, "f").flat()["stride"] == 2000


@pytest.mark.parametrize(
    ("name", "resolved"), [("longbenh", "longbench"), ("passkey_retreival", "passkey_retrieval"), ("pg19", "pg19")]
)
def test_task_spellings(name: str, resolved: str) -> None:
    own = {"n_garbage": 100} if resolved == "passkey_retrieval" else {}
    assert build_config({**BASE, "task": name, **own}, "f").task == resolved


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"max_positions": 3}, "unknown key 'max_positions'"),
        ({"ori_max_position_embedding": 3}, "did you mean 'ori_max_position_embeddings'"),
        ({"options": {}}, "unknown key 'options'"),
        ({"task": "longbench", "n_garbage": 3}, "unknown key 'n_garbage': it belongs to task passkey_retrieval"),
        ({"stride": 2000}, "unknown key 'stride': it belongs to task pg19, not needle"),
        ({"task": "pg19", "times": 3}, "it belongs to tasks needle and passkey_retrieval, not pg19"),
        ({"tims": 3}, "unknown key 'tims'; did you mean 'times'?"),
        ({"exp_nam": 3}, "unknown key 'exp_nam'; did you mean 'exp_name'?"),
        ({"max_pe": "16k"}, "max_pe = '16k': must be a whole number"),
        ({"max_pe": 0}, "max_pe = 0: must be greater than 0"),
        ({"max_pe": 16384.0}, "max_pe = 16384.0: must be a whole number"),
        ({"max_pe": True}, "max_pe = True: must be a whole number"),
        ({"test": "yes"}, "test = 'yes': must be true or false"),
        ({"system_prompt": 3}, "system_prompt = 3: must be a text"),
        ({"device_map": 3}, "device_map = 3: must be a text or a table"),
        ({"tasks": "qasper"}, "tasks = 'qasper': must be a list"),
        ({"chat": "yes"}, "chat = 'yes': must be 'auto' or 'none'"),
        ({"limit": -1}, "limit = -1"),
        ({"gap": 0}, "gap = 0"),
        ({"gap": "4"}, "gap"),
        ({"min_k": 9, "max_k": 8}, "max_k = 8 is less than min_k = 9"),
        ({"max_k": float("nan")}, "max_k"),
        ({"task": "longbanch"}, "did you mean 'longbench'"),
        ({"task": "passkey_retrieval"}, "n_garbage is missing"),
        ({"haystack": "essays"}, "data_dir is missing"),
        ({"haystack": "hay"}, "haystack = 'hay'"),
        ({"dtype": "int8"}, "dtype = 'int8'"),
        ({"device_map": "auto", "tp_plan": "auto"}, "exclude each other"),
        ({"params": 3}, "params = 3: must be a table"),
        ({"model": ""}, "model = '': must not be empty"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        build_config({**BASE, **keys}, "some.toml")
    assert said in str(error.value)
    assert str(error.value).startswith("some.toml: ")
    assert "\n" not in str(error.value)


def test_data_dir_may_lie_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert build_config({**BASE, "data_dir": "~/books"}, "f").options.data_dir == Path("/somewhere/books")


def test_missing_key_is_named() -> None:
    with pytest.raises(UserError, match="'method' is missing"):
        build_config({key: value for key, value in BASE.items() if key != "method"}, "f")


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a\\b", "..", ".hidden", "", "/tmp/x", "all", "-x", "a\x00b", "a\nb", "x" * 201, "x\n"]
)
def test_exp_name_stays_in_its_folder(name: str) -> None:
    with pytest.raises(UserError, match="exp_name"):
        build_config({**BASE, "exp_name": name}, "f")


@pytest.mark.parametrize("name", ["dpi-llama2-7b-4k-to-16k", "a.b", "x_1", "yarn s=2"])
def test_usual_exp_names_pass(name: str) -> None:
    assert build_config({**BASE, "exp_name": name}, "f").exp_name == name


def test_overrides_are_toml_or_strings_and_reach_into_params() -> None:
    content = {**BASE, "params": {"chunk_coe": 3000, "local_window": 128}}
    overrides = [
        "method=repro_se",
        "params.group_size=3",
        "params.chunk_coe=0.5",
        "max_k=2",
        'exp_name="a=b"',
        "test=true",
    ]
    result = apply_overrides(content, overrides)
    assert result["method"] == "repro_se"
    assert result["params"] == {"chunk_coe": 0.5, "local_window": 128, "group_size": 3}
    assert result["max_k"] == 2
    assert result["test"] is True
    assert result["exp_name"] == "a=b"
    assert content["params"] == {"chunk_coe": 3000, "local_window": 128}, "the original stays as it is"


def test_an_override_reaches_as_deep_as_it_says() -> None:
    content = {"sweep": {"task": {"needle": {"times": 3}}}}
    assert apply_overrides(content, ["sweep.task.needle.times=1", "sweep.params.dpi.local_window=8"]) == {
        "sweep": {"task": {"needle": {"times": 1}}, "params": {"dpi": {"local_window": 8}}}
    }
    assert content["sweep"]["task"]["needle"]["times"] == 3, "the original stays as it is"


def test_whole_params_can_be_replaced() -> None:
    result = apply_overrides({**BASE, "params": {"chunk_coe": 1}}, ["params={factor = 4}"])
    assert result["params"] == {"factor": 4}


@pytest.mark.parametrize("override", ["x", "=3", "a..c=1", "a.=1", "params x=1"])
def test_malformed_overrides(override: str) -> None:
    with pytest.raises(UserError, match="--set"):
        apply_overrides(BASE, [override])


def test_override_into_a_key_that_is_no_table() -> None:
    with pytest.raises(UserError, match="'model' is not a table"):
        apply_overrides(BASE, ["model.x=1"])


@pytest.mark.parametrize("content", [b"a = ", b"a = 1\na = 2", b"\xff\xfe"])
def test_broken_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not valid TOML") as error:
        read_toml(path)
    assert "\n" not in str(error.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "no.toml", tmp_path):
        with pytest.raises(UserError, match="cannot read"):
            read_toml(path)


def test_resumable_form_ignores_what_chooses_records_or_hardware() -> None:
    first = config(limit=3, device="cpu", tasks=["a"])
    assert first.resumable_form() == config().resumable_form()
    assert first.resumable_form() != config(seed=1).resumable_form()
    assert first.resumable_form() != config(params={"factor": 2}).resumable_form()


def test_a_benchmark_names_more_keys_that_may_change() -> None:
    first, second = config(task="pg19", stride=100), config(task="pg19", stride=200)
    assert first.resumable_form() == second.resumable_form()
    assert first.resumable_form() != config(task="pg19", step=100).resumable_form()


def test_several_mistakes_come_at_once() -> None:
    with pytest.raises(UserError) as error:
        build_config({**BASE, "method": 3, "max_pe": 0, "tims": 3}, "f")
    assert all(said in str(error.value) for said in ("method = 3", "max_pe = 0", "'tims'"))


@pytest.mark.parametrize("name", task_names())
def test_no_benchmark_takes_a_key_that_says_how_a_run_is_made(name: str) -> None:
    """A key in a flat file must mean one thing."""
    assert not RUN_KEYS & set(get_task(name).Options.model_fields)


def test_the_flat_form_is_what_the_files_keys_say() -> None:
    content = {**BASE, "dtype": "bf16", "lengths": [1, 2.5], "data_dir": "books", "params": {"chunk_coe": 3}}
    flat = config(**content).flat()
    assert json.loads(json.dumps(flat)) == flat
    assert {key: flat[key] for key in content} == {**content, "dtype": "bfloat16"}
    assert set(flat) == RUN_KEYS | set(get_task("needle").Options.model_fields)
    assert build_config({key: value for key, value in flat.items() if value is not None}, "f") == config(**content)


def test_an_option_may_not_be_a_key_of_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the run would have one value, and the benchmark another."""

    class Greedy(Options):
        limit: int = 7

    monkeypatch.setattr(type(get_task("pg19")), "Options", Greedy)
    content = {"model": "m", "exp_name": "e", "method": "repro_original", "task": "pg19", "max_pe": 8192, "limit": 3}
    with pytest.raises(TypeError, match=r"the options of task 'pg19' have 'limit', a key of every run"):
        build_config(content, "file")


@pytest.mark.parametrize("value", [0, -3, True, 2.0, "many", "4", None, [4]])
def test_a_batch_size_is_a_number_of_records_or_auto(value: object) -> None:
    with pytest.raises(UserError, match="must be a number of records, 1 or more, or 'auto'"):
        config(batch_size=value)
    assert (config().batch_size, config(batch_size=7).batch_size, config(batch_size="auto").batch_size) == (
        1,
        7,
        "auto",
    )
