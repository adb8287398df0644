"""The command on a small random model: what it measures, how it goes on, what it refuses."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import compare
import comparison
from comparison import measuring, storage
from comparison.probes import Item
from comparison.report import notes_of
from models.DPI import calibration
from models.DPI.losses import mean_loss_beyond
from models.DPI.methods import METHODS
from models.DPI.patches.Llama import installed
from pipeline.cli import EXIT_DONE, EXIT_FAILED_RECORDS
from tasks.errors import UserError
from tests.pipeline.small import WORDS, save_model, tiny_model

WINDOW, TARGET = 64, 151


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("small"))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, times in (("a", 9), ("b", 11), ("short", 1)):
        words = WORDS.split()
        (folder / f"{name}.txt").write_text(" ".join(words[len(name) * times % 7 :] * times), encoding="utf-8")
    return folder


def arguments(model: Path, texts: Path, out: Path, *more: str) -> list[str]:
    return [
        "--model", str(model), "--target", str(TARGET), "--texts", str(texts), "--out", str(out), "--device", "cpu",
        "--methods", "dpi,repro_yarn", "--depths", "2", "--samples", "2", "--texts-limit", "2",
        "--lengths", f"120,{TARGET}", *more,
    ]  # fmt: skip


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "scores.jsonl").read_text(encoding="utf-8").splitlines()]


def without_times(out: Path) -> list[dict[str, Any]]:
    return [line for line in lines(out) if "seconds_per_1k" not in line]


def test_all_settings_are_measured_on_all_items(model: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compare.main(arguments(model, texts, out)) == EXIT_DONE
    found = comparison.load(out)
    assert [one.setting.label for one in found.settings.values()] == ["GALI", "YaRN", "GALI auto"]
    assert len(lines(out)) == 3 * len(found.items)
    counts = {probe: sum(item.probe == probe for item in found.items) for probe in ("loss", "passkey", "passkey_text")}
    assert counts == {"loss": 2, "passkey": 4, "passkey_text": 4}
    items = {item.id: item for item in storage.read_items(out, with_tokens=True)}
    assert all(len(item.ids) == item.length for item in items.values() if item.probe != "passkey_text")
    [gali, _, auto] = found.settings.values()
    assert auto.setting.measured
    assert auto.setting.params == METHODS["dpi"].automatic(auto.setting.window)
    assert gali.seconds_per_1k is not None
    with installed(tiny_model(WINDOW), gali.setting.build(), WINDOW) as stock:
        loss = mean_loss_beyond(stock, torch.tensor([items["loss b.txt"].ids]), WINDOW)
    assert gali.losses["loss b.txt"] == pytest.approx(loss, abs=1e-5)
    for name in ("comparison.md", "comparison.xlsx", "frontier.png", "depths.png", "balanced.toml"):
        assert (out / name).stat().st_size > 100


def test_a_run_that_was_stopped_goes_on_and_another_is_refused(
    model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert compare.main(arguments(model, texts, whole)) == EXIT_DONE
    original, left = measuring.measure, [7]

    def stopped(*args: Any, **kwargs: Any) -> Iterator[tuple[Item, dict[str, Any]]]:
        for found in original(*args, **kwargs):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            yield found

    monkeypatch.setattr(measuring, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare.main(arguments(model, texts, out))
    assert len(lines(out)) == 7
    with (out / "scores.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "cut o')  # as a process that is killed leaves it
    monkeypatch.undo()
    assert compare.main(arguments(model, texts, out)) == EXIT_DONE
    assert without_times(out) == without_times(whole), "nothing twice, nothing missing"
    before = (out / "scores.jsonl").read_bytes()
    assert compare.main(arguments(model, texts, out)) == EXIT_DONE
    assert (out / "scores.jsonl").read_bytes() == before, "what is complete is not measured again"
    with pytest.raises(UserError, match=r"holds another comparison: request.sizes.depths was 2, is 3"):
        compare.main([*arguments(model, texts, out), "--depths", "3"])
    (texts / "b.txt").write_text(WORDS * 20, encoding="utf-8")
    with pytest.raises(UserError, match="holds another comparison: texts was"):
        compare.main(arguments(model, texts, out))
    assert (out / "scores.jsonl").read_bytes() == before


def test_with_tuning_the_second_half_is_of_the_chosen(model: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compare.main([*arguments(model, texts, out), "--tune"]) == EXIT_DONE
    found = comparison.load(out)
    assert len(found.settings) > len(found.reported())
    items = {item.id: item for item in found.items}
    reported = {line["setting"] for line in lines(out) if not items[line["item"]].chooses}
    assert reported == set(found.reported())
    choosing = {line["setting"] for line in lines(out) if items[line["item"]].chooses}
    assert choosing == set(found.settings)
    assert {item.dataset for item in found.half(chooses=True) if item.probe == "loss"} == {"a.txt"}
    for probe in ("passkey", "passkey_text", "ruler"):
        lengths = [{i.length for i in found.half(chooses=c) if i.probe == probe} for c in (True, False)]
        assert lengths[0] == lengths[1]


@pytest.mark.parametrize(("more", "names"), [([], []), (["--tune"], ["a.txt"])])
def test_auto_is_measured_on_the_texts_that_choose(
    more: list[str], names: list[str], model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    stock = calibration.calibrate

    def watched(*args: Any, **kwargs: Any) -> calibration.Calibration:
        given.append(kwargs["texts"])
        return stock(*args, **kwargs)

    monkeypatch.setattr(calibration, "calibrate", watched)
    monkeypatch.setattr(measuring, "measure", lambda *_, **__: iter(()))
    assert compare.main([*arguments(model, texts, tmp_path / "out"), "--methods", "dpi", *more]) == EXIT_DONE
    assert given == [[(texts / name).read_text(encoding="utf-8") for name in names] or None]
    [auto] = [s for s in storage.read_settings(tmp_path / "out") if s.measured]
    assert list(auto.measured_on) == names
    said = "the choosing half, a.txt" if names else "Python's help"
    found = comparison.load(tmp_path / "out")
    assert (f"was measured on {said}." in " ".join(notes_of(found))) is (auto.id in found.reported())


def test_another_model_or_machine_is_refused_by_name(model: Path, texts: Path, tmp_path: Path) -> None:
    own, out = tmp_path / "own", tmp_path / "out"
    shutil.copytree(model, own)
    command = [*arguments(own, texts, out), "--methods", "repro_yarn"]
    assert compare.main(command) == EXIT_DONE
    scores = (out / "scores.jsonl").read_bytes()
    before = json.loads((out / "request.json").read_text())
    assert before["attention"] == {"repro_yarn": "sdpa"}
    assert before["device"] == "CPU"
    weights = before["weights"] | {"model.safetensors": "0"}
    for key, value, said in [
        ("commit", "c0ffee", "commit was 'c0ffee', is None"),
        ("weights", weights, "weights.model.safetensors was '0', is "),
        ("device", "NVIDIA H100", "device was 'NVIDIA H100', is 'CPU'"),
        ("attention", {"repro_yarn": "triton"}, "attention.repro_yarn was 'triton', is 'sdpa'"),
    ]:
        (out / "request.json").write_text(json.dumps(before | {key: value}))
        with pytest.raises(UserError, match=f"holds another comparison: {re.escape(said)}"):
            compare.main(command)
    earlier = {key: value for key, value in before.items() if key in ("request", "texts", "baseline", "device")}
    (out / "request.json").write_text(json.dumps(earlier))
    assert compare.main(command) == EXIT_DONE, "earlier versions wrote fewer"
    with torch.no_grad():
        other = tiny_model()
        other.model.norm.weight[3] += 0.01
    other.save_pretrained(own)
    with pytest.raises(UserError, match=r"holds another comparison: weights\.model\.safetensors was "):
        compare.main(command)
    assert (out / "scores.jsonl").read_bytes() == scores


def test_what_fails_is_named_and_tried_again(
    model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def broken(*_: Any, **__: Any) -> float:
        raise FloatingPointError("the mean loss is nan")

    monkeypatch.setattr(measuring, "mean_loss", broken)
    assert compare.main(arguments(model, texts, out)) == EXIT_FAILED_RECORDS
    assert "2 failed: FloatingPointError: the mean loss is nan" in (out / "comparison.md").read_text(encoding="utf-8")
    assert comparison.load(out).recommendations() == {}
    assert not (out / "balanced.toml").exists()
    monkeypatch.undo()
    assert compare.main(arguments(model, texts, out)) == EXIT_DONE
    assert "failed" not in (out / "comparison.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--methods", "dpi,yarm"], "--methods: 'yarm' is none of"),
        (["--methods", "string,dpi"], "no shift reaches more than"),
        (["--methods", ""], "--methods names none"),
        (["--baseline", "pi"], "--baseline 'pi' is not among the methods compared (dpi, repro_yarn)"),
        (["--target", "64"], "--target 64 must be larger than the window of 64 tokens"),
        (["--window", "0"], "window = 0"),
        (["--lengths", "400"], "--lengths: 400 is beyond the target of 151"),
        (["--lengths", "20"], "no prompt fits --lengths 20"),
        (["--lengths", "0"], "lengths"),
        (["--depths", "0"], "depths = 0"),
        (["--seed", "-1"], "seed = -1"),
        (["--samples", "1", "--tune"], "--depths, --samples and --texts-limit must be at least 2"),
        (["--depths", "1", "--tune"], "must be at least 2"),
        (["--texts-limit", "1", "--tune"], "must be at least 2"),
        (["--attn-impl", "fast"], "attn_impl is 'fast'"),
        (["--dtype", "float8"], "dtype is 'float8'"),
        (["--lengths", "many"], "invalid numbers value: 'many'"),
    ],
)
def test_mistakes_are_refused_and_leave_nothing(
    more: list[str], said: str, model: Path, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError) as caught:
        compare.main([*arguments(model, texts, out), *more])
    assert said in str(caught.value)
    assert not (out / "scores.jsonl").exists()


def test_texts_that_are_too_short_are_refused(model: Path, texts: Path, tmp_path: Path) -> None:
    for name in "ab":
        (texts / f"{name}.txt").unlink()
    with pytest.raises(UserError, match=r"have no 151 tokens in one piece; give longer texts"):
        compare.main(arguments(model, texts, tmp_path / "out"))
    with pytest.raises(UserError, match=r"has no \*\.txt files"):
        compare.main(arguments(model, tmp_path / "none", tmp_path / "out"))
