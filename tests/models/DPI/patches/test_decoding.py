"""Decoding from recordings against the same steps run one by one. On a CPU a recording runs its Python again, with
planning forbidden, since a CUDA graph could not plan either; with a GPU it is a CUDA graph."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from models.DPI.attention.backends import BACKENDS
from models.DPI.attention.bands import Plan
from models.DPI.attention.prepared import PreparedStep
from models.DPI.methods import build_method
from models.DPI.patches import Llama as patch
from models.DPI.patches import decoding
from tests.models.DPI.helpers import CHUNK_FREE, WINDOW, padded, tokens

pytest.importorskip("triton")

from models.DPI.attention.kernels import decode, pieces

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROOM = 96
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "GALI": ("dpi", CHUNK_FREE),
    "noise": ("dpi", CHUNK_FREE | {"noise_type": "gaussian", "std_base": 2.0}),
    "SelfExtend": ("repro_se", {"group_size": 3, "window_size": 9}),
    "ChunkLlama": ("repro_chunkllama", {"local_window": 5}),
}


class _Recorder:
    """Counts what was recorded and replayed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded = self.replayed = 0
        self.monkeypatch = monkeypatch
        self.real = decoding.record

    def record(self, run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        self.recorded += 1
        replay = self.real(run, device) if DEVICE == "cuda" else self._rerun(run)

        def counted() -> Tensor:
            self.replayed += 1
            return replay()

        return counted

    def _rerun(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        result: list[Tensor] = []

        def replay() -> Tensor:
            new = self._without_planning(run)
            result.append(new.clone())
            return result[0].copy_(new)  # a graph's result is overwritten, too

        return replay

    def _without_planning(self, run: Callable[[], Tensor]) -> Tensor:
        def refuse(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("a recording cannot plan")

        with self.monkeypatch.context() as context:
            context.setattr(patch, "make_plan", refuse)
            context.setattr("models.DPI.attention.kernels.pieces.prepare_step", refuse)
            context.setattr("models.DPI.attention.kernels.decode.prepare_step", refuse)
            return run()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> _Recorder:
    found = _Recorder(monkeypatch)
    monkeypatch.setattr(decoding, "record", found.record)
    if DEVICE == "cpu":
        monkeypatch.setattr(decoding, "can_record", lambda device: True)
        monkeypatch.setitem(BACKENDS, "triton", dataclasses.replace(BACKENDS["triton"], obstacle=lambda q, plan: None))
    return found


@pytest.fixture
def model(make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    made = make_model(WINDOW, dtype=torch.float16, hidden_size=64, head_dim=64, initializer_range=0.1)
    return made.to(DEVICE)


def edges(prompt: int, length: int) -> list[tuple[int, int]]:
    """Where each pass begins and ends: the prompt, then a token at a time."""
    return list(itertools.pairwise([0, *range(prompt, length + 1)]))


@torch.no_grad()
def steps(model: PreTrainedModel, ids: Tensor, prompt: int, cache: Cache, mask: Tensor | None = None) -> Tensor:
    """Logits of the tokens after the prompt, fed one by one, (B, T, vocabulary)."""
    out = []
    for first, last in edges(prompt, ids.shape[1]):
        seen = None if mask is None else mask[:, :last].to(DEVICE)
        out.append(model(ids[:, first:last].to(DEVICE), attention_mask=seen, past_key_values=cache).logits[:, -1:])
    return torch.cat(out[1:], dim=1).float()


def one_by_one(model: PreTrainedModel, ids: Tensor, prompt: int, mask: Tensor | None = None) -> Tensor:
    """Logits of the same steps, none of which is recorded."""
    with pytest.MonkeyPatch.context() as context:
        context.setattr(decoding, "can_record", lambda device: False)
        return steps(model, ids, prompt, DynamicCache(config=model.config), mask)


def static(model: PreTrainedModel) -> StaticCache:
    return StaticCache(config=model.config, max_cache_len=ROOM)


def dynamic(model: PreTrainedModel) -> DynamicCache:
    return DynamicCache(config=model.config)


MakeCache = Callable[[PreTrainedModel], Cache]
CACHES = pytest.mark.parametrize("make_cache", [static, dynamic])


@pytest.mark.parametrize("name", METHODS)
def test_replayed_steps_are_the_steps(model: PreTrainedModel, recorder: _Recorder, name: str) -> None:
    method, params = METHODS[name]
    patch.install(model, build_method(method, params, WINDOW), WINDOW, attn_impl="triton", seed=5)
    ids = tokens(1, 66)
    expected = one_by_one(model, ids, 57)
    assert recorder.recorded == 0
    found = steps(model, ids, 57, static(model))
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-3)
    assert recorder.recorded >= 1
    assert recorder.replayed >= 7  # of nine; the first runs to compile, and another where the tables' number changes


@pytest.mark.parametrize("model_type", ["stablelm", "glm"])
def test_heads_that_rotate_in_part(
    make_model: Callable[..., PreTrainedModel], recorder: _Recorder, model_type: str
) -> None:
    """Beside attention by the definition. GLM's components rotate in neighbouring pairs."""
    shape = {"hidden_size": 64, "head_dim": 64, "num_attention_heads": 1, "num_key_value_heads": 1}
    made = make_model(WINDOW, model_type, torch.float16, partial_rotary_factor=0.25, initializer_range=0.1, **shape)
    model = made.to(DEVICE)
    ids = tokens(1, 46)
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW, attn_impl="reference")
    expected = one_by_one(model, ids, 41)
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW, attn_impl="triton")
    found = steps(model, ids, 41, static(model))
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-3)
    assert recorder.replayed >= 3


def test_rows_of_different_padding(model: PreTrainedModel, recorder: _Recorder) -> None:
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW, attn_impl="triton")
    ids, mask = padded([47, 40, 53])
    expected = one_by_one(model, ids, 47, mask)
    found = steps(model, ids, 47, static(model), mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-3)
    assert recorder.replayed >= 4


def test_a_generation_that_grows_beyond_the_window(model: PreTrainedModel, recorder: _Recorder) -> None:
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW)
    ids = tokens(1, 40)
    expected = one_by_one(model, ids, 30)
    found = steps(model, ids, 30, static(model))
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-3)
    assert recorder.replayed >= 5


def test_another_cache_is_recorded_anew(model: PreTrainedModel, recorder: _Recorder) -> None:
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW, attn_impl="triton")
    first, second = tokens(1, 44), tokens(1, 44, seed=1)
    both = [static(model), static(model)]
    expected = [one_by_one(model, ids, 41) for ids in (first, second)]
    with torch.no_grad():
        for ids, cache in zip((first, second), both, strict=True):
            model(ids[:, :41].to(DEVICE), past_key_values=cache)
        for at in range(41, 44):  # in turn
            for row, (ids, cache) in enumerate(zip((first, second), both, strict=True)):
                found = model(ids[:, at : at + 1].to(DEVICE), past_key_values=cache).logits[:, -1].float()
                torch.testing.assert_close(found, expected[row][:, at - 41], rtol=0, atol=4e-3)
    assert recorder.replayed == 0


@torch.no_grad()
def test_a_step_takes_what_was_made_ahead(
    model: PreTrainedModel, recorder: _Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And another cache of the same length, which is not replayed, takes nothing of it: that may still be written."""
    made: list[PreparedStep] = []
    read: list[PreparedStep] = []
    prepare, attend = pieces.prepare_step, decode.attend_one

    def prepared(*args: Any, **kwargs: Any) -> PreparedStep:
        made.append(prepare(*args, **kwargs))
        return made[-1]

    def attended(q: Tensor, k: Tensor, v: Tensor, plan: Plan, **kwargs: Any) -> Tensor:
        out = attend(q, k, v, plan, **kwargs)
        read.extend(plan.prepared.values())
        return out

    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW, attn_impl="triton")
    ids, one, other = tokens(1, 48).to(DEVICE), static(model), dynamic(model)
    for cache, length in ((one, 41), (other, 45)):
        model(ids[:, :length], past_key_values=cache)
    monkeypatch.setattr(pieces, "prepare_step", prepared)
    for at in range(41, 45):
        model(ids[:, at : at + 1], past_key_values=one)
    assert (recorder.replayed, len(made)) == (3, 5)  # the first step, the second, and one ahead of each replay's next
    monkeypatch.setattr(decode, "prepare_step", prepared)
    monkeypatch.setattr(decode, "attend_one", attended)
    model(ids[:, 45:46], past_key_values=other, output_hidden_states=True)
    assert read
    assert not {step.arrivals.data_ptr() for step in read} & {step.arrivals.data_ptr() for step in made[:5]}
    expected = one_by_one(model, ids, 45)[:, 0]
    found = model(ids[:, 45:46], past_key_values=one).logits[:, -1].float()
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-3)


def test_new_weights_reach_the_next_generation(model: PreTrainedModel, recorder: _Recorder) -> None:
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW, attn_impl="triton")
    ids, cache = tokens(1, 45), static(model)
    steps(model, ids, 41, cache)
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.5  # elsewhere in memory
    expected = one_by_one(model, ids, 41)
    cache.reset()
    torch.testing.assert_close(steps(model, ids, 41, cache), expected, rtol=0, atol=4e-3)
    assert recorder.recorded == 2


@torch.no_grad()
def test_results_of_earlier_steps_stay(model: PreTrainedModel, recorder: _Recorder) -> None:
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW, attn_impl="triton")
    ids, cache = tokens(1, 45).to(DEVICE), static(model)
    model(ids[:, :41], past_key_values=cache)
    out = [model.model(ids[:, at : at + 1], past_key_values=cache).last_hidden_state for at in range(41, 45)]
    assert recorder.replayed == 3
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(out))


@pytest.mark.parametrize("watch", ["hook", "observer", "hidden states", "gradients"])
def test_who_watches_the_layers_sees_every_step(model: PreTrainedModel, recorder: _Recorder, watch: str) -> None:
    impl = "auto" if watch == "gradients" else "triton"  # which has no backward pass
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW, attn_impl=impl)
    seen: list[int] = []
    ids, cache = tokens(1, 45), static(model)
    if watch == "hook":
        model.model.layers[0].register_forward_hook(lambda *args: seen.append(1))
        steps(model, ids, 41, cache)
    elif watch == "observer":
        with patch.observe(model, lambda layer, *args: seen.append(1) if layer == 0 else None):
            steps(model, ids, 41, cache)
    else:
        asked = {"output_hidden_states": True} if watch == "hidden states" else {"return_dict": True}
        for first, last in edges(41, 45):
            with torch.set_grad_enabled(watch == "gradients"):
                out = model(ids[:, first:last].to(DEVICE), past_key_values=cache, **asked)
            if out.logits.requires_grad or out.hidden_states:
                seen.append(1)
    assert len(seen) == 5
    assert recorder.recorded == 0


@torch.no_grad()
def test_a_hook_of_a_later_step_is_called(model: PreTrainedModel, recorder: _Recorder) -> None:
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW, attn_impl="triton")
    ids, cache = tokens(1, 47).to(DEVICE), static(model)
    seen: list[int] = []
    for first, last in edges(41, 46):
        if first == 43:
            model.model.layers[1].mlp.register_forward_pre_hook(lambda *args: seen.append(1))
        model(ids[:, first:last], past_key_values=cache)
    assert recorder.replayed == 1
    assert len(seen) == 3


@torch.no_grad()
def test_hidden_states_once_do_not_end_recording(model: PreTrainedModel, recorder: _Recorder) -> None:
    """transformers leaves its hooks on the layers."""
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW, attn_impl="triton")
    ids = tokens(1, 45)
    assert len(model(ids[:, :40].to(DEVICE), output_hidden_states=True).hidden_states) == 3
    steps(model, ids, 41, static(model))
    assert recorder.replayed == 3


@torch.no_grad()
def test_a_prefix_used_again_is_recorded_anew(model: PreTrainedModel, recorder: _Recorder) -> None:
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW, attn_impl="triton")
    ids, cache = tokens(1, 47).to(DEVICE), static(model)
    model(ids[:, :41], past_key_values=cache)

    def three() -> Tensor:
        return torch.cat([model(ids[:, at : at + 1], past_key_values=cache).logits for at in range(41, 44)])

    first = three()
    assert recorder.replayed == 2
    for layer in cache.layers:
        layer.cumulative_length.fill_(41)
    assert torch.equal(three(), first)
    assert (recorder.recorded, recorder.replayed) == (2, 4)


@torch.no_grad()
def test_a_tuple_for_who_asks_for_one(model: PreTrainedModel, recorder: _Recorder) -> None:
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW, attn_impl="triton")
    ids, cache = tokens(1, 45).to(DEVICE), static(model)
    model(ids[:, :41], past_key_values=cache)
    for at in range(41, 44):
        assert isinstance(model.model(ids[:, at : at + 1], past_key_values=cache, return_dict=False), tuple)
    assert recorder.recorded == 0


def test_what_cannot_be_recorded_runs_step_by_step(
    model: PreTrainedModel, recorder: _Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []

    def fail(run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        tries.append(1)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(decoding, "record", fail)
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW, attn_impl="triton")
    ids = tokens(1, 46)
    expected = one_by_one(model, ids, 41)
    torch.testing.assert_close(steps(model, ids, 41, static(model)), expected, rtol=0, atol=4e-3)
    steps(model, ids, 41, static(model))
    assert len(tries) == 1
    assert "not permitted when stream is capturing" in caplog.text
    assert not patch.replays_decoding(model, 41)


@pytest.mark.parametrize(
    ("name", "params", "impl", "length", "replays"),
    [
        ("dpi", CHUNK_FREE, "auto", 50, True),
        ("dpi", CHUNK_FREE, "auto", 20, False),  # within the window
        ("dpi", CHUNK_FREE, "sdpa", 50, False),
        ("repro_original", {}, "auto", 50, False),
    ],
)
def test_where_a_static_cache_pays(
    model: PreTrainedModel, recorder: _Recorder, name: str, params: dict, impl: str, length: int, replays: bool
) -> None:
    assert not patch.replays_decoding(model, length)  # no method
    patch.install(model, build_method(name, params, WINDOW), WINDOW, attn_impl=impl)
    assert patch.replays_decoding(model, length) == replays
    model.model.layers[0].register_forward_hook(lambda *args: None)
    assert not patch.replays_decoding(model, length)


@pytest.mark.parametrize("own", [False, True], ids=["of the class", "of the instance"])
def test_uninstalling_gives_the_forwards_back(model: PreTrainedModel, own: bool) -> None:
    """accelerate gives instances a `forward` of their own."""
    modules = [model.model, model.model.layers[0].mlp]
    if own:
        for module in modules:
            module.forward = functools.partial(module.forward)
    before = [module.forward for module in modules]
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW)
    assert all(module.forward != forward for module, forward in zip(modules, before, strict=True))
    patch.uninstall(model)
    assert [module.forward for module in modules] == before
    assert all(("forward" in vars(module)) == own for module in modules)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generation(model: PreTrainedModel, recorder: _Recorder, options: dict[str, Any]) -> None:
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW)
    ids, mask = (x.to(DEVICE) for x in padded([40, 53]))
    asked = {"attention_mask": mask, "max_new_tokens": 30, "do_sample": False, **options}
    with pytest.MonkeyPatch.context() as context:
        context.setattr(decoding, "can_record", lambda device: False)
        expected = model.generate(ids, **asked)
    assert recorder.recorded == 0
    for number, cache in enumerate(({"cache_implementation": "static"}, {}), start=1):
        assert torch.equal(model.generate(ids, **cache, **asked), expected)
        assert (recorder.replayed >= 20 * number) == (not options)  # beams move the cache at every step
