"""The effective window: the rule on made-up measurements, what models are fed, the cache, and the front doors."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from models.DPI import calibration, calibration_cache, dpi, loading
from models.DPI.calibration import Calibration, Measurement, calibrate, judge, lengths_of, make_prompts, text_pieces
from models.DPI.methods import METHODS, build_method
from models.DPI.patches.Llama import install, installation_of, uninstall
from models.DPI.short_names import tiny
from tests.models.DPI.helpers import MakeModel, tokens

W = 512
TEXT = "A cat sat on the mat. It was a fine day, and nobody came to see it. " * 300


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GALI_CACHE", str(tmp_path))
    return tmp_path / "calibration"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny().folder)
    return found


def measured(answers: list[list[float]], losses: list[list[float]] | None = None) -> Measurement:
    rows: Any = [tuple(row) for row in answers]
    return Measurement(
        window=800, lengths=tuple(range(100, 900, 100)), answers=rows, losses=tuple(map(tuple, losses or []))
    )


def shifted(by: list[float], prompts: int = 6) -> list[list[float]]:
    """Prompts that differ in difficulty, but hardly in what each length adds."""
    return [[prompt / 3 + more + 0.01 * (prompt % 2) for more in by] for prompt in range(prompts)]


def test_where_nothing_fails_the_window_is_whole() -> None:
    found = judge(measured(shifted([0.0] * 8), shifted([3.0] * 8)))
    assert (found.window, found.local_window, found.chunk_coe) == (800, 400, 1)
    assert "no length" in found.reason


@pytest.mark.parametrize(("bad", "window"), [(7, 700), (4, 400), (2, 200)])
def test_the_window_ends_before_the_first_length_that_fails(bad: int, window: int) -> None:
    by = [0.0] * 8
    by[bad] = 0.8  # more than ln 2; what comes after may be good again
    found = judge(measured(shifted(by)))
    assert (found.window, found.local_window) == (window, window // 2)
    assert f"0.80 nats worse in {100 * bad + 100} tokens" in found.reason


def test_a_tolerable_or_uncertain_loss_of_answers_changes_nothing() -> None:
    assert judge(measured(shifted([0.0] * 6 + [0.6, 0.6]))).window == 800
    noisy = [[0.0] * 7 + [9.0 * (prompt == 0)] for prompt in range(6)]  # a mean of 1.5 with an error of 1.5
    assert judge(measured(noisy)).window == 800


def test_losses_that_rise_end_the_window() -> None:
    fine = shifted([0.0] * 8)
    found = judge(measured(fine, shifted([3.4, 3.2, 3.1, 3.0, 3.005, 3.02, 3.0, 3.0])))
    assert found.window == 500
    assert "losses are 0.020 nats worse in 600" in found.reason
    assert judge(measured(fine, shifted([3.0] * 7 + [3.4], prompts=1))).window == 800, "one piece has no error"


def test_keys_that_are_never_found_tell_nothing() -> None:
    found = judge(measured(shifted([12.0] * 4 + [20.0] * 4)))
    assert found.window == 800
    assert "cannot tell" in found.reason


@pytest.mark.parametrize(
    "change",
    [{"lengths": (1, 2)}, {"window": 801}, {"answers": ((1.0,) * 8,)}, {"answers": ((1.0,) * 7,) * 3},
     {"answers": ((math.nan,) * 8,) * 3}, {"answers": ((-1.0,) * 8,) * 3}, {"version": 2}, {"more": 1}],
    ids=str,
)  # fmt: skip
def test_a_measurement_of_another_shape_is_none(change: dict[str, Any]) -> None:
    good = measured(shifted([0.0] * 8)).model_dump()
    Measurement.model_validate(good)
    with pytest.raises(ValueError, match=r"."):
        Measurement.model_validate({**good, **change})


@pytest.mark.parametrize("window", [W, 777, 2048])
def test_prompts_have_their_lengths_and_keys_their_depths(tokenizer: PreTrainedTokenizerBase, window: int) -> None:
    lengths, prompts = make_prompts(tokenizer, window, [TEXT], 6)
    assert lengths == lengths_of(window)[-len(lengths) :]
    assert lengths[-1] == window
    shares = []
    for row in prompts:
        assert [len(prompt.ids) for prompt in row] == lengths
        text, answer = str(tokenizer.decode(row[-1].ids)), str(tokenizer.decode(row[-1].ids[-row[-1].answer :]))
        assert text.endswith(f"The pass key is{answer}")
        line = f"The pass key is{answer}. Remember it.{answer} is the pass key."
        assert text.count(line) == 1
        assert all(tokenizer.decode(prompt.ids).count(line) == 1 for prompt in row)
        shares.append(text.index(line) / len(text))
    assert len({tuple(row[0].ids[-row[0].answer :]) for row in prompts}) == 6
    assert shares[0] < 0.4 < shares[2] < 0.7 < shares[4], "of the repeated sentence"
    assert shares[1] < 0.4 < shares[3] < 0.7 < shares[5], "of the text"
    assert "cat" not in tokenizer.decode(prompts[0][-1].ids)
    assert "cat" in tokenizer.decode(prompts[1][-1].ids)


def test_pieces_end_alike_and_do_not_overlap(tokenizer: PreTrainedTokenizerBase) -> None:
    pieces = text_pieces(tokenizer, W, [TEXT, TEXT[5:]], 3, lengths_of(W))
    assert len(pieces) == 3
    for piece in pieces:
        assert [len(ids) for ids in piece] == lengths_of(W)
        assert all(ids[0] == tokenizer.bos_token_id and ids[-30:] == piece[-1][-30:] for ids in piece)
    assert pieces[0][-1] != pieces[2][-1]
    assert text_pieces(tokenizer, W, ["too short"], 3, lengths_of(W)) == []


def test_an_answer_costs_what_the_whole_logits_say(make_model: MakeModel) -> None:
    model, ids = make_model(), tokens(1, 29)[0].tolist()
    with torch.no_grad():
        whole = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected = -sum(float(whole[at - 1, ids[at]]) for at in (25, 26, 27, 28))
        assert calibration._answer_nll(model, calibration.Prompt(ids, 4)) == pytest.approx(expected, abs=1e-4)
        mean = -sum(float(whole[at - 1, ids[at]]) for at in range(24, 29)) / 5
        assert calibration._loss(model, ids, 5) == pytest.approx(mean, abs=1e-4)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return uninstall(dpi.get_model_and_tokenizer("tiny", None, "repro_original", {})[0])


def test_a_window_claimed_twice_too_large_is_found_out(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The embedded model was trained on 512 tokens; behind them nothing is found."""
    model.train()
    found = calibrate(model, tokenizer, 2 * W, trials=4, cached=False)
    assert model.training
    model.eval()
    assert found.window == W
    assert found.evidence is not None
    assert min(min(row[4:]) for row in found.evidence.answers) >= 0
    assert max(max(row[:4]) for row in found.evidence.answers) < 1 < min(row[-1] for row in found.evidence.answers)


def test_a_measurement_is_kept_under_all_that_it_depends_on(
    tokenizer: PreTrainedTokenizerBase, make_model: MakeModel, cache: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    passes = 0
    real = calibration._answer_nll

    def counted(*args: Any) -> float:
        nonlocal passes
        passes += 1
        return real(*args)

    monkeypatch.setattr(calibration, "_answer_nll", counted)
    model = make_model(window=W, vocab_size=len(tokenizer))

    def again(**options: Any) -> tuple[int, Calibration]:
        nonlocal passes
        passes = 0
        found = calibrate(model, tokenizer, W, texts=[TEXT], **{"trials": 2, **options})
        return passes, found

    first, found = again()
    assert first > 0
    assert again() == (0, found)
    (path,) = cache.iterdir()
    assert again(trials=3)[0] > 0
    assert again(cached=False)[0] > 0
    content = path.read_text()
    with torch.no_grad():
        next(model.parameters()).view(-1)[1234] += 0.5
    assert again()[0] > 0, "a weight has changed"
    with torch.no_grad():
        next(model.parameters()).view(-1)[1234] -= 0.5
    for broken in (
        content[:-30],
        "[]",
        content.replace('"window": 512', '"window": 99'),
        "\x00",
        content.replace(path.stem, "0" * 64),
    ):
        path.write_text(broken)
        caplog.clear()
        assert again() == (first, found)
        assert "measured anew" in caplog.text
        assert path.read_text() == content
    path.unlink()
    path.mkdir()
    caplog.clear()
    assert again() == (first, found), "no file can be there"
    assert "cannot be kept" in caplog.text
    assert [p.name for p in cache.iterdir() if p.name.startswith(".")] == []


def test_weights_that_are_not_here_have_no_hash(make_model: MakeModel) -> None:
    assert calibration_cache.key_of(make_model(), 1) != calibration_cache.key_of(make_model(), 2)
    assert calibration_cache.key_of(make_model().to_empty(device="meta"), 1) is None


def test_what_cannot_be_measured_is_said(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, make_model: MakeModel
) -> None:
    found = calibrate(model, tokenizer, 64)
    assert (found.window, found.local_window, found.evidence) == (64, 32, None)
    assert "a quarter of 64 tokens is too short" in found.reason
    for options, said in (({"trials": 1}, "trials = 1"), ({"texts": [" "]}, "texts are empty")):
        with pytest.raises(ValueError, match=said):
            calibrate(model, tokenizer, W, **options)
    with pytest.raises(ValueError, match="window = 0"):
        calibrate(model, tokenizer, 0)
    broken = make_model(window=W, vocab_size=len(tokenizer))
    with torch.no_grad():
        next(broken.parameters())[:] = math.nan
    with pytest.raises(ValueError, match="not finite within its own window of 512"):
        calibrate(broken, tokenizer, W, trials=2)
    install(broken, build_method("repro_original", {}))
    with pytest.raises(ValueError, match="has the method 'repro_original'; uninstall"):
        calibrate(broken, tokenizer, W)


AUTO = {"local_window": "auto", "chunk_coe": "auto"}


def test_auto_parameters_follow_the_window() -> None:
    found: Any = build_method("dpi", AUTO, 96)
    assert (found.local_window, found.chunk_coe) == (48, 1)
    given: Any = build_method("dpi", AUTO | {"local_window": 7}, 96)
    assert (given.local_window, given.chunk_coe) == (7, 1)


@pytest.mark.parametrize(
    ("name", "params", "window", "said"),
    [
        ("dpi", AUTO, None, "'auto' depends on the window"),
        ("dpi", {"std_base": "auto"}, 64, "std_base = 'auto': only chunk_coe and local_window can be"),
        ("dpi", {"std_base": "auto"}, None, "std_base = 'auto': only chunk_coe and local_window can be"),
        ("repro_se", {"group_size": "auto", "window_size": 9}, 64, "'repro_se'.*group_size = 'auto'.*nothing"),
        ("string", {"local_window": "auto"}, 64, "'string'.*local_window = 'auto'.*nothing"),
        ("dpi", {"local_window": "Auto"}, 64, "local_window = 'Auto': must be a whole number"),
        ("dpi", AUTO, "auto", "max_position_embeddings = 'auto'"),
    ],
)
def test_auto_is_refused_where_it_means_nothing(name: str, params: Any, window: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        build_method(name, params, window)
    assert "\n" not in str(caught.value)


def test_loading_measures_and_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measure(model: Any, tokenizer: Any, window: int) -> Calibration:
        assert installation_of(model) is None
        asked.append(window)
        return Calibration(window=384, local_window=192, chunk_coe=1, reason="")

    monkeypatch.setattr(loading, "calibrate", measure)
    for config, window in ((None, "auto"), ({"ori_max_position_embeddings": "auto"}, None)):
        model, _ = dpi.get_model_and_tokenizer("tiny", config, "dpi", AUTO, window)  # type: ignore[arg-type]
        installation = installation_of(model)
        assert installation is not None
        assert installation.rope.window == 384
        assert installation.method == build_method("dpi", {"chunk_coe": 1, "local_window": 192})
    assert asked == [W, W]
    model, _ = dpi.get_model_and_tokenizer("tiny", None, "dpi", AUTO)
    assert installation_of(model).method.local_window == 256  # type: ignore[union-attr]
    assert asked == [W, W], "nothing is to be measured where the window is the model's"
    with pytest.raises(ValueError, match=r"local_window = 400 must be smaller than the model's window of 384"):
        dpi.get_model_and_tokenizer("tiny", None, "dpi", {"local_window": 400}, "auto")


@pytest.mark.parametrize("name", [name for name in METHODS if name != "dpi"])
def test_other_methods_have_no_measured_window(name: str) -> None:
    with pytest.raises(ValueError, match=f"window = 'auto': the method '{name}'.*the method dpi"):
        dpi.get_model_and_tokenizer("no/such-model", None, name, {}, "auto")


def test_install_has_no_tokenizer(make_model: MakeModel) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"calibrate\(model, tokenizer, W\)\.window"):
        install(model, build_method("dpi", {"local_window": 7}), "auto")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not go with tp_plan"):
        dpi.get_model_and_tokenizer("tiny", None, "dpi", AUTO, "auto", tp_plan="auto")
