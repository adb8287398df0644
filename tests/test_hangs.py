"""What could run for ever, or fill the memory, ends in one line that names it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import get_task, needle_prompts
from tasks.errors import UserError
from tests.tasks.fakes import byte_tokenizer, options
from tests.test_cli import Run, model, place, run

__all__ = ["model", "place", "run"]

pytestmark = pytest.mark.timeout(60)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


Make = Callable[[Path], None]
both = pytest.mark.parametrize("make", [pipe, endless])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["depths=1000000000"], "depths = 1000000000: must be at most 1000"),
        (["depths=1e9"], "depths = 1000000000.0: must be a whole number"),
        (["max_k=1e18"], "max_k = 1e+18: must be at most 100000"),
        (["max_pe=100000000", "max_k=1e5", "gap=0.001"], "gap = 0.001 makes 99,999,851 lengths"),
        (["gap=1e-12"], "gap = 1e-12: must be at least 0.001"),
        (["lengths=[1e18]"], "lengths.0 = 1e+18: must be at most"),
        (["times=100000000"], "2 lengths x depths = 16 x times = 100000000 are 3,200,000,000 records"),
        (["max_pe=1000000000000"], "max_pe = 1000000000000: must be at most 100000000"),
        (["limit=100000000000000000"], "limit = 100000000000000000: must be at most"),
        (["max_new_tokens=256"], "max_new_tokens = 256 leaves no room for a prompt within max_pe = 256"),
        (["max_new_tokens=1000000000"], "max_new_tokens = 1000000000: must be at most"),
    ],
)
def test_needle_without_end(place: Path, run: Run, keys: list[str], said: str) -> None:
    code, _, err = run("pred", "--cfg", "needle.toml", *(f"--set={key}" for key in keys))
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["times=100000000", "n_garbage=100"], "times = 100000000: must be at most 100000"),
        (["n_garbage=1000000000000"], "n_garbage = 1000000000000: must be at most"),
    ],
)
def test_passkeys_without_end(place: Path, run: Run, keys: list[str], said: str) -> None:
    code, _, err = run("pred", "--cfg", "any.toml", "--set=task=passkey_retrieval", *(f"--set={key}" for key in keys))
    assert code == 2
    assert said in err


def test_lengths_that_round_to_one_are_one() -> None:
    task = get_task("needle")
    chosen = options("needle", min_k=0.9005, max_k=0.9035, gap=0.001, depths=1, times=1, max_new_tokens=4)
    assert [record["context_length"] for record in task.records(chosen, "needle")] == [900, 902, 904]


@pytest.mark.parametrize(
    ("template", "length"),
    [
        ("{{ 'x' * 400 }}", 400),  # a wording of constant length
        ("{% for m in messages %}{{ m['content'][:2000] }}{% endfor %}", 2000),  # text left out beyond some length
    ],
)
def test_a_chat_template_that_leaves_text_out(template: str, length: int) -> None:
    task = get_task("needle")
    tokenizer = byte_tokenizer(template)
    chosen = options("needle", lengths=[3.0], depths=1, times=1)
    (record,) = task.records(chosen, "needle")
    said = rf"a needle prompt of 3000 tokens is impossible: with .* it has {length}; the model's chat template"
    with pytest.raises(UserError, match=said):
        task.prompt(chosen, "needle", record, tokenizer)
    longer = "{% for m in messages %}{{ m['content'][:9000] }}{% endfor %}"
    assert len(task.prompt(chosen, "needle", record, byte_tokenizer(longer))) == 3000


def test_a_chat_template_longer_than_the_prompt() -> None:
    needle = needle_prompts.passkey_needle("1")
    with pytest.raises(UserError, match="a needle prompt of 300 tokens is impossible: its wording alone has"):
        needle_prompts.fit_prompt(300, 0.5, needle, None, lambda text: [0] * (len(text) + 5000))


@both
def test_a_configuration_that_is_no_file(place: Path, run: Run, make: Make) -> None:
    make(place / "strange.toml")
    code, _, err = run("pred", "--cfg", "strange.toml")
    assert (code, err) == (2, "error: 'strange.toml' is no regular file; give a file or a copy of its content\n")


@pytest.mark.parametrize("key", ["a" + ".a" * 30_000, "'a'" + ' . "a"' * 30_000])
def test_a_configuration_with_a_key_of_thousands_of_parts(place: Path, run: Run, key: str) -> None:
    (place / "deep.toml").write_text(f"text = 'one. two. {'and. ' * 99}'\n{key[:100_000]} = 1\n")
    code, _, err = run("pred", "--cfg", "deep.toml")
    assert code == 2
    assert "'deep.toml' is not valid TOML: tables and lists are nested deeper than 32" in err


def test_a_sweep_of_too_many_experiments(place: Path, run: Run) -> None:
    many = list(range(1, 3001))
    (place / "sweep.toml").write_text(
        f'[sweep]\ntasks = ["needle"]\nmodels = [{{model = "m", name = "m", windows = {many}, targets = {many}}}]\n'
    )
    code, _, err = run("pred", "--cfg", "sweep.toml", "--dry-run")
    assert code == 2
    assert "sweep.toml: sweep: 63,000,000 experiments are more than 10,000; split the file" in err


@both
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("qasper.jsonl", ["task=longbench", "tasks=['qasper']"]),
        ("qasper_e.jsonl", ["task=longbench_e", "tasks=['qasper']"]),
        ("quality.jsonl", ["task=leval", "tasks=['quality']"]),
        ("book.txt", ["task=pg19"]),
        ("essay.txt", ["haystack='essays'", "min_k=0.15"]),
    ],
)
def test_data_that_are_no_file(place: Path, run: Run, make: Make, name: str, keys: list[str]) -> None:
    data = place / "data"
    data.mkdir()
    make(data / name)
    arguments = [f"--set={key}" for key in (f"data_dir='{data}'", *keys)]
    code, _, err = run("pred", "--cfg", "any.toml", *arguments)
    assert code == 2
    assert f"/{name}' is no regular file" in err


@both
@pytest.mark.parametrize("name", ["run.json", "result.json", "result_detail.json", "needle.jsonl"])
def test_results_that_are_no_files(place: Path, run: Run, make: Make, name: str) -> None:
    assert run("pred", "--cfg", "needle.toml")[0] == 0
    assert run("eval", "--task", "needle", "--exp", "all")[0] == 0
    path = place / "results/needle/pred/dpi-tiny-64-to-256" / name
    path.unlink()
    make(path)
    commands: list[tuple[str, ...]] = [("collect_results",)]
    if name != "result_detail.json":
        commands.append(("eval", "--exp", "dpi-tiny-64-to-256"))
    for script, *more in commands:
        code, _, err = run(script, "--task", "needle", *more)
        assert code == 2, script
        assert f"{name}' is " in err
    if not name.startswith("result"):
        code, _, err = run("pred", "--cfg", "needle.toml")
        assert code == 2
        assert f"{name}' is " in err


@both
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json"])
def test_a_model_that_is_no_file(place: Path, run: Run, model: Path, make: Make, name: str) -> None:
    shutil.copytree(model, place / "strange")
    (place / "strange" / name).unlink()
    make(place / "strange" / name)
    code, _, err = run("pred", "--cfg", "needle.toml", "--set", "model=./strange")
    assert code == 2
    assert f"strange/{name} is a pipe or a device" in err or (name == "config.json" and "no config.json" in err)
