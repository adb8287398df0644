from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks import get_task, task_names
from tasks.options import Options
from tests.tasks.fakes import options

SHARED = {
    "max_pe", "ori_max_position_embeddings", "data_dir", "data_revision", "seed", "system_prompt", "chat",
    "max_new_tokens",
}  # fmt: skip
OWN = {
    "needle": {"times", "min_k", "max_k", "gap", "haystack", "needle", "lengths", "depths"},
    "passkey_retrieval": {"times", "n_garbage"},
    "ruler": {"sequence_lengths", "samples"},
    "pg19": {"stride", "step"},
    "longbench": set(),
    "longbench_e": set(),
    "leval": {"exact_match"},
}
VALUES = {
    "times": 3, "min_k": 1, "max_k": 2, "gap": 1, "haystack": "passkey", "needle": "sandwich", "lengths": [1],
    "depths": 2, "n_garbage": 100, "stride": 5, "step": 5, "exact_match": "first_line",
}  # fmt: skip
REQUIRED = {"passkey_retrieval": {"n_garbage": 700}}


def test_each_benchmark_reads_the_shared_keys_and_its_own() -> None:
    assert set(OWN) == set(task_names())
    assert set(Options.model_fields) == SHARED
    for name, keys in OWN.items():
        assert set(get_task(name).Options.model_fields) == SHARED | keys


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("key", VALUES)
def test_a_key_of_another_benchmark_is_refused(name: str, key: str) -> None:
    content = {**REQUIRED.get(name, {}), key: VALUES[key]}
    if key in OWN[name]:
        assert key in options(name, **content).model_fields_set
        return
    with pytest.raises(ValidationError) as error:
        options(name, **content)
    assert [(item["type"], item["loc"]) for item in error.value.errors()] == [("extra_forbidden", (key,))]


def test_defaults_are_the_published_ones() -> None:
    needle = options("needle").model_dump(include=OWN["needle"])
    assert needle == {
        "times": 20, "min_k": 1, "max_k": None, "gap": 4, "haystack": "passkey", "needle": "auto", "lengths": (),
        "depths": 16,
    }  # fmt: skip
    assert options("pg19").model_dump(include=OWN["pg19"]) == {"stride": 2000, "step": 1024}
    assert options("passkey_retrieval", n_garbage=7).model_dump(include=OWN["passkey_retrieval"])["times"] == 20
    assert options("leval").model_dump(include=OWN["leval"]) == {"exact_match": "whole"}


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("needle", {"max_pe": "16k"}, "max_pe"),
        ("needle", {"max_pe": 16384.0}, "max_pe"),
        ("needle", {"max_pe": True}, "max_pe"),
        ("needle", {"gap": 0}, "gap"),
        ("needle", {"gap": "4"}, "must be a number, not '4'"),
        ("needle", {"lengths": [1, True]}, "must be a number, not True"),
        ("needle", {"max_k": float("nan")}, "max_k"),
        ("needle", {"min_k": 9, "max_k": 8}, "max_k = 8 is less than min_k = 9"),
        ("needle", {"haystack": "hay"}, "haystack"),
        (
            "needle",
            {"haystack": "essays"},
            "data_dir is missing; haystack = 'essays' needs a folder of *.txt files",
        ),
        ("needle", {"depths": 0}, "depths"),
        (
            "passkey_retrieval",
            {},
            "n_garbage is missing; passkey_retrieval needs it (characters of garbage, such as 60000)",
        ),
        ("passkey_retrieval", {"n_garbage": 0}, "n_garbage"),
        ("passkey_retrieval", {"n_garbage": 9, "times": 0}, "times"),
        ("pg19", {"stride": 0}, "stride"),
        ("pg19", {"step": -1}, "step"),
        ("leval", {"chat": "always"}, "chat"),
        ("leval", {"exact_match": "first"}, "exact_match Input should be 'whole' or 'first_line'"),
        ("longbench", {"seed": -1}, "seed"),
        ("longbench", {"max_new_tokens": 0}, "max_new_tokens"),
        (
            "longbench",
            {"max_new_tokens": 4096},
            "max_new_tokens = 4096 leaves no room for a prompt within",
        ),
    ],
)
def test_mistakes_name_the_key(name: str, keys: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        options(name, **keys)
    (item,) = error.value.errors()
    assert said in f"{'.'.join(map(str, item['loc']))} {item['msg']}"


def test_data_dir_may_lie_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert options("pg19", data_dir="~/books").data_dir == Path("/somewhere/books")


def test_what_changes_no_prediction_may_change_between_runs() -> None:
    changing = {name: get_task(name).Options.may_change for name in task_names()}
    assert changing.pop("pg19") == {"stride"}
    assert changing.pop("leval") == {"exact_match"}
    assert set(changing.values()) == {frozenset()}
