from pathlib import Path

import pytest

from pipeline.config import apply_overrides, build_config, read_toml
from tasks.errors import UserError
from tests.pipeline.small import config

BASE = {"model": "m", "exp_name": "e", "method": "dpi", "task": "needle", "max_pe": 16384}


def test_seed_keys_keep_their_names():
    keys = {"test": True, "ori_max_position_embeddings": 4096, "stride": 2000, "times": 3}
    built = build_config({**BASE, **keys, "min_k": 1, "max_k": 2.5, "gap": 0.5, "params": {"chunk_coe": 0.5}}, "f")
    assert (built.min_k, built.max_k, built.gap) == (1, 2.5, 0.5)
    assert built.params == {"chunk_coe": 0.5}
    assert built.test and built.stride == 2000


@pytest.mark.parametrize(
    ("name", "resolved"), [("longbenh", "longbench"), ("passkey_retreival", "passkey_retrieval"), ("pg19", "pg19")]
)
def test_task_spellings(name, resolved):
    assert build_config({**BASE, "task": name, "n_garbage": 100}, "f").task == resolved


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"max_positions": 3}, "unknown key 'max_positions'"),
        ({"ori_max_position_embedding": 3}, "did you mean 'ori_max_position_embeddings'"),
        ({"max_pe": "16k"}, "max_pe = '16k'"),
        ({"max_pe": 0}, "max_pe = 0"),
        ({"max_pe": 16384.0}, "max_pe = 16384.0"),
        ({"max_pe": True}, "max_pe = True"),
        ({"test": "yes"}, "test = 'yes'"),
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
        ({"params": 3}, "params = 3"),
        ({"model": ""}, "model"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(keys, said):
    with pytest.raises(UserError) as error:
        build_config({**BASE, **keys}, "some.toml")
    assert said in str(error.value)
    assert str(error.value).startswith("some.toml: ")
    assert "\n" not in str(error.value)


def test_data_dir_may_lie_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert build_config({**BASE, "data_dir": "~/books"}, "f").data_dir == Path("/somewhere/books")


def test_missing_key_is_named():
    with pytest.raises(UserError, match="'method' is missing"):
        build_config({key: value for key, value in BASE.items() if key != "method"}, "f")


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a\\b", "..", ".hidden", "", "/tmp/x", "all", "-x", "a\x00b", "a\nb", "x" * 201, "x\n"]
)
def test_exp_name_stays_in_its_folder(name):
    with pytest.raises(UserError, match="exp_name"):
        build_config({**BASE, "exp_name": name}, "f")


@pytest.mark.parametrize("name", ["dpi-llama2-7b-4k-to-16k", "a.b", "x_1", "yarn s=2"])
def test_usual_exp_names_pass(name):
    assert build_config({**BASE, "exp_name": name}, "f").exp_name == name


def test_overrides_are_toml_or_strings_and_reach_into_params():
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
    assert result["max_k"] == 2 and result["test"] is True and result["exp_name"] == "a=b"
    assert content["params"] == {"chunk_coe": 3000, "local_window": 128}, "the original stays as it is"


def test_whole_params_can_be_replaced():
    result = apply_overrides({**BASE, "params": {"chunk_coe": 1}}, ["params={factor = 4}"])
    assert result["params"] == {"factor": 4}


@pytest.mark.parametrize("override", ["x", "=3", "a.b.c=1", "params x=1"])
def test_malformed_overrides(override):
    with pytest.raises(UserError, match="--set"):
        apply_overrides(BASE, [override])


def test_override_into_a_key_that_is_no_table():
    with pytest.raises(UserError, match="'model' is not a table"):
        apply_overrides(BASE, ["model.x=1"])


@pytest.mark.parametrize("content", [b"a = ", b"a = 1\na = 2", b"\xff\xfe"])
def test_broken_toml(tmp_path: Path, content: bytes):
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not valid TOML") as error:
        read_toml(path)
    assert "\n" not in str(error.value)


def test_missing_file_and_folder(tmp_path: Path):
    for path in (tmp_path / "no.toml", tmp_path):
        with pytest.raises(UserError, match="cannot read"):
            read_toml(path)


def test_resumable_form_ignores_what_chooses_records_or_hardware():
    first = config(limit=3, device="cpu", tasks=["a"])
    assert first.resumable_form() == config().resumable_form()
    assert first.resumable_form() != config(seed=1).resumable_form()
    assert first.resumable_form() != config(params={"factor": 2}).resumable_form()
