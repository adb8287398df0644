"""Prompts that begin alike are read once: the same predictions, fewer tokens fed, and nothing left by what failed."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import StaticCache

from models.DPI import build_method, install
from models.DPI.dpi import get_model_and_tokenizer
from models.DPI.methods import METHODS
from models.DPI.patches.generation import static_cache
from pipeline import engine as engine_module
from pipeline import prefixes
from pipeline.checks import check_start
from pipeline.config import build_config
from pipeline.engine import ModelEngine
from pipeline.experiment import run_experiment
from pipeline.prefixes import KeptCache
from tasks.base import Request
from tasks.errors import UserError
from tests.models.DPI.helpers import CHUNKS, PARAMS
from tests.pipeline.fake_task import FakeWorkers
from tests.pipeline.small import tiny_model, word_tokenizer

CAUSAL = {"chunk_coe": 1, "local_window": 8}
NEW = 5


def made(method: str = "dpi", params: dict[str, Any] | None = None, *, shares: bool = True) -> ModelEngine:
    """A random model with a window of 64."""
    model = install(tiny_model(), build_method(method, CAUSAL if params is None else params), 64)
    engine = ModelEngine(model, word_tokenizer())
    engine.share_prefixes(shares)
    return engine


def ids(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    size = len(word_tokenizer())
    return torch.randint(3, size, (count,), generator=generator).tolist()


@contextmanager
def fed(engine: ModelEngine) -> Iterator[list[int]]:
    """How many tokens each prompt's first forward pass took."""
    seen: list[int] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] > 1:
            seen.append(kwargs["input_ids"].shape[1])

    handle = engine.model.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def say(engine: ModelEngine, *prompts: Sequence[int], new: int = NEW) -> list[Any]:
    """What the engine says to prompts one after another."""
    return [engine.generate([Request(prompt, new)])[0] for prompt in prompts]


def questions(count: int, length: int = 151, seed: int = 0) -> list[list[int]]:
    """One document, and a question of another length behind each."""
    document = ids(length, seed)
    return [[*document, *ids(7 + number, 100 * seed + number + 1)] for number in range(count)]


@pytest.mark.parametrize("name", [name for name in METHODS if build_method(name, PARAMS[name]).is_causal()])
@pytest.mark.parametrize("length", [37, 61, 151])
def test_texts_are_those_of_whole_prompts(name: str, length: int) -> None:
    """Documents that end within the window, just before its end, and beyond it."""
    prompts = [*questions(3, length), *questions(2, 90, seed=5)]
    sharing, plain = made(name, PARAMS[name]), made(name, PARAMS[name], shares=False)
    with fed(sharing) as seen:
        assert say(sharing, *prompts) == say(plain, *prompts)
    assert seen[0] == length + 7
    assert seen[1] <= 8, "the second question only"
    assert seen[2] <= 9
    assert seen[3] >= 90, "another document"


def test_logits_are_those_of_whole_prompts() -> None:
    """Texts hide much: the keys themselves are equal."""
    first, second = questions(2)
    sharing, plain = made(), made()
    say(sharing, first, second)
    say(plain, second)
    for shared, whole in zip(sharing._kept._cache.layers, plain._kept._cache.layers, strict=True):
        torch.testing.assert_close(shared.keys, whole.keys, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(shared.values, whole.values, atol=1e-5, rtol=1e-4)


def test_the_same_prompt_again_is_one_token() -> None:
    engine = made()
    prompt = ids(100, 0)
    with fed(engine) as seen:
        one, two = say(engine, prompt, prompt)
    assert one == two
    assert seen == [100]


def test_a_turn_goes_on_from_the_answer_before() -> None:
    engine = made()
    prompt = ids(100, 0)
    watch = made(shares=False)
    (answer,) = say(engine, prompt)
    spoken = watch.model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)[0].tolist()
    further = [*spoken, *ids(9, 4)]
    with fed(engine) as seen:
        assert say(engine, further) == say(watch, further)
    assert seen == [10 if answer.new_tokens == NEW else 9]


def test_one_cache_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a new document is read, the old one's cache is gone."""
    engine = made()
    alive: list[bool] = []
    stock = engine.model.generate
    monkeypatch.setattr(
        engine.model, "generate", lambda *args, **kwargs: (alive.append(bool(engine._kept)), stock(*args, **kwargs))[1]
    )
    say(engine, *questions(2), *questions(2, seed=1), *questions(1, 20, seed=2))
    assert alive == [False] * 4 + [True], "a much shorter prompt leaves it to the one after"
    assert engine._kept._cache.get_seq_length() < 151 + 20 + NEW


def test_a_short_prompt_between_leaves_the_cache_but_a_second_does_not() -> None:
    long, other = questions(2)
    engine, plain = made(), made(shares=False)
    short, third = ids(12, 7), ids(13, 8)
    with fed(engine) as seen:
        assert say(engine, long, short, other, short, third, other) == say(
            plain, long, short, other, short, third, other
        )
    assert seen == [158, 12, 8, 12, 13, 159]


@pytest.mark.parametrize("params", [CHUNKS, {"chunk_coe": 0.5, "local_window": 8}])
def test_methods_that_are_not_causal_share_nothing(params: dict[str, Any]) -> None:
    engine = made("dpi", params, shares=False)
    engine.share_prefixes("auto")
    with fed(engine) as seen:
        say(engine, *questions(2))
    assert seen == [158, 159]
    assert engine.generation_settings()["shares_prefixes"] is False
    with pytest.raises(ValueError, match=r"share_prefixes = true: under method 'dpi' .* take a method that is causal"):
        engine.share_prefixes(True)


def test_auto_shares_in_fp32_alone() -> None:
    engine = made()
    engine.share_prefixes("auto")
    assert engine.generation_settings()["shares_prefixes"] is True
    engine.model.to(torch.bfloat16)
    engine.share_prefixes("auto")
    assert engine.generation_settings()["shares_prefixes"] is False
    engine.share_prefixes(True)
    assert engine.generation_settings()["shares_prefixes"] is True


def test_batches_share_nothing_and_give_the_memory_back() -> None:
    engine, plain = made(), made(shares=False)
    first, second, third = questions(3)
    say(engine, first)
    requests = [Request(second, NEW), Request(third, NEW)]
    with fed(engine) as seen:
        assert engine.generate(requests) == plain.generate(requests)
    assert seen == [160]
    assert not engine._kept
    say(engine, first)
    engine.token_losses(first, 50)
    assert not engine._kept


def test_local_layers_are_refused(make_model: Callable[..., Any]) -> None:
    model = make_model(64, "gemma2", num_hidden_layers=2, sliding_window=16)
    reason = prefixes.why_not(build_method("dpi", CAUSAL), model.config)
    assert reason is not None
    assert "attend locally" in reason


def fail_at(engine: ModelEngine, monkeypatch: pytest.MonkeyPatch, wrong: dict[int, Exception]) -> list[int]:
    """Let the engine's forward passes of these numbers raise, after the layers before the last wrote their keys."""
    calls: list[int] = []
    layer = engine.model.model.layers[-1]
    stock = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if calls[-1] in wrong:
            raise wrong[calls[-1]]
        return stock(*args, **kwargs)

    monkeypatch.setattr(layer, "forward", forward)
    return calls


@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_fault_leaves_nothing_to_the_next(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """In the second record, at its prompt or at a later token: half of the layers have keys that the others lack."""
    first, second, third = questions(3)
    expected = say(made(shares=False), first, second, third)
    engine = made()
    assert say(engine, first) == expected[:1]
    with monkeypatch.context() as patch:
        fail_at(engine, patch, {step: KeyError("a fault")})
        with pytest.raises(KeyError):
            say(engine, second)
    assert not engine._kept
    with fed(engine) as seen:
        assert say(engine, third, second) == [expected[2], expected[1]]
    assert seen == [len(third), 7 + 1], "the next one is read whole, and shared again"


def test_logits_that_are_not_finite_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = questions(3)
    engine = made()
    say(engine, first)
    with monkeypatch.context() as patch:
        patch.setattr(engine.model.lm_head, "forward", lambda x: torch.full((*x.shape[:2], 40), torch.nan))
        assert isinstance(say(engine, second)[0], FloatingPointError)
    assert not engine._kept
    assert say(engine, third) == say(made(shares=False), third)


def test_what_does_not_fit_beside_a_cache_is_tried_without(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = questions(3)
    expected = say(made(shares=False), first, second, third)
    engine = made()
    say(engine, first)
    with monkeypatch.context() as patch:
        fail_at(engine, patch, {0: torch.OutOfMemoryError("no room")})
        with fed(engine) as seen:
            assert say(engine, second, third) == expected[1:]
    assert seen == [8, len(second), 9]
    other = ids(120, 3)
    with monkeypatch.context() as patch:
        fail_at(engine, patch, {0: torch.OutOfMemoryError("no room"), 1: torch.OutOfMemoryError("none at all")})
        with pytest.raises(torch.OutOfMemoryError, match="none at all"):
            say(engine, other)
    engine._kept.drop()
    with monkeypatch.context() as patch:
        calls = fail_at(engine, patch, {0: torch.OutOfMemoryError("no room")})
        with pytest.raises(torch.OutOfMemoryError, match="no room"):
            say(engine, other)
    assert calls == [0], "nothing was kept: to try again is of no use"


def test_static_caches_are_shared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU beyond the window. What is longer than the cache has room is read whole, in a new one."""
    monkeypatch.setattr(engine_module, "replays_decoding", lambda model, length: length > 64)
    monkeypatch.setattr(engine_module, "_SPARE", 6)
    document = ids(151, 0)
    prompts = [[*document, *ids(count, count)] for count in (7, 12, 4, 30)]
    prompts += [document[:40], document[:100]]
    engine, plain = made(), made(shares=False)
    with fed(engine) as seen:
        assert say(engine, *prompts) == say(plain, *prompts)
    assert seen == [158, 12, 4, 181, 40, 100], "a cache of the other kind is not gone on from"
    assert isinstance(engine._kept._cache, StaticCache)


def test_a_cache_that_cannot_be_cut_is_dropped() -> None:
    engine = made()
    kept = KeptCache()
    assert kept.take([1, 2, 3], 9, static=False) is None
    kept.keep([1, 2, 3, 4], static_cache(engine.model, 9))  # nothing was fed to it
    assert kept.take([1, 2, 3, 5], 9, static=True) is None
    assert not kept


def leval_rows(folder: Path) -> Path:
    """Two documents in L-Eval's form, three questions each; beyond 512 tokens of the embedded model."""
    rows = []
    for number in range(2):
        document = " ".join(f"On day {day} of trip {number} we saw {day * 7} birds by the lake." for day in range(45))
        asked = [f"How many birds were seen on day {day}?" for day in (3, 20 + number, 41)]
        rows.append({"input": document, "instructions": asked, "outputs": ["21", "147", "357"], "evaluation": "exam"})
    folder.mkdir(parents=True)
    (folder / "gsm100.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sci_fi.jsonl").write_text(json.dumps(rows[0]) + "\n")
    return folder


@pytest.fixture(scope="module")
def leval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return leval_rows(tmp_path_factory.mktemp("leval") / "data")


@pytest.mark.parametrize(
    ("method", "params", "reads"),
    [
        ("dpi", {"chunk_coe": 1, "local_window": 128}, 5),
        ("repro_se", {"group_size": 6, "window_size": 128}, 5),
        ("repro_chunkllama", {}, 9),
    ],
)
def test_prediction_lines_are_equal(
    tmp_path: Path, leval: Path, method: str, params: dict[str, Any], reads: int
) -> None:
    """L-Eval on the embedded model, resumed after its first record. reads: long prompts that are read."""
    files: dict[Any, list[bytes]] = {}
    model = get_model_and_tokenizer("tiny", None, method, params, target_length=2048)
    for shares in ("auto", False):
        keys = {
            "model": "tiny", "exp_name": "e", "method": method, "params": params, "task": "leval", "max_pe": 2048,
            "data_dir": str(leval), "max_new_tokens": 6, "tasks": ["gsm100", "sci_fi"], "share_prefixes": shares,
        }  # fmt: skip
        engine = ModelEngine(*model)
        cfg = build_config(keys, "test")
        engine.share_prefixes(cfg.share_prefixes)
        results = tmp_path / str(shares)
        with fed(engine) as seen:
            for limit in (1, 6):
                part = cfg.model_copy(update={"limit": limit})
                run_experiment(part, results, FakeWorkers(), lambda cfg, engine=engine: engine, window=512)
        folder = results / "le/pred/e"
        files[shares] = [(folder / f"{name}.jsonl").read_bytes() for name in ("gsm100", "sci_fi")]
        run = json.loads((folder / "run.json").read_text())
        assert run["config"]["share_prefixes"] == shares
        assert run["generation"]["shares_prefixes"] is (shares == "auto" and method != "repro_chunkllama")
        assert sum(tokens > 600 for tokens in seen) == (reads if shares == "auto" else 9)
    assert files["auto"] == files[False]
    assert [text.count(b"\n") for text in files[False]] == [6, 3]
    assert b'"error"' not in b"".join(files[False])


def test_configurations_that_cannot_share_are_refused() -> None:
    base = {"model": "tiny", "exp_name": "e", "task": "needle", "max_pe": 2048, "share_prefixes": True}
    with pytest.raises(UserError, match=r"share_prefixes = true: under method 'dpi' .* causal"):
        check_start(build_config({**base, "method": "dpi", "params": {"chunk_coe": 300}}, "test"))
    check_start(build_config({**base, "method": "dpi", "params": {"chunk_coe": 1}}, "test"))
    with pytest.raises(UserError, match="share_prefixes = true is for single records, and batch_size = 4"):
        build_config({**base, "method": "dpi", "batch_size": 4}, "test")
    with pytest.raises(UserError, match="share_prefixes = 1 must be true, false or 'auto'"):
        build_config({**base, "method": "dpi", "share_prefixes": 1}, "test")


@pytest.mark.gpu
def test_recorded_decoding_goes_on_from_a_shared_prefix() -> None:
    """On a GPU beyond the window: a static cache, cut in place, whose steps are recorded anew. bf16."""
    params = {"chunk_coe": 1, "local_window": 128}
    model, tokenizer = get_model_and_tokenizer("tiny", None, "dpi", params, device="cuda")
    document = tokenizer("On day 9 we saw 70 birds by the lake. " * 60)["input_ids"]
    prompts = [document + tokenizer(text)["input_ids"] for text in ("What is it?", "How many birds did we see?")]
    kept: list[StaticCache] = []
    for asked in (prompts, prompts[1:]):
        engine = ModelEngine(model, tokenizer)
        engine.share_prefixes(True)
        say(engine, *asked, new=9)  # unwatched: a model with hooks is not recorded
        cache = engine._kept._cache
        assert isinstance(cache, StaticCache)
        kept.append(cache)
    for shared, whole in zip(kept[0].layers, kept[1].layers, strict=True):
        length = len(prompts[1])
        torch.testing.assert_close(shared.keys[:, :, :length], whole.keys[:, :, :length], atol=0.1, rtol=0.1)
