"""Ways to decode and to cache, by the names of the README's table: each right, or refused in words.

Right is the text of the same way on the materialised implementation, without what the way adds: no cache of another
kind, no pieces, no streamer.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig, QuantizedCache, StaticCache
from transformers import __version__ as transformers_version
from transformers.cache_utils import QuantizedLayer
from transformers.generation.streamers import BaseStreamer

from models.DPI.methods import METHODS, build_method
from tests.conftest import ROOT
from tests.models.DPI.helpers import CHUNK_FREE, CHUNKS, NOISY, PARAMS, WINDOW, MakeModel, logits, padded, put, tokens

SUBJECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpi chunk-free": ("dpi", CHUNK_FREE),
    "dpi noisy": ("dpi", NOISY),
    "dpi in chunks": ("dpi", CHUNKS),
    **{name: (name, params) for name, params in PARAMS.items() if METHODS[name].in_paper and name != "dpi"},
    # Of the others one that leaves keys out, and one whose positions depend on all tokens.
    **{name: (name, PARAMS[name]) for name in ("streaming_llm", "lampe")},
}
TRANSFORMERS = Version(transformers_version)
IS_CAUSAL = {subject: build_method(*what).is_causal() for subject, what in SUBJECTS.items()}


class ExactLayer(QuantizedLayer):
    """A quantised cache that loses nothing, so that what it does besides can be compared. Moves 5 tokens at a time."""

    def __init__(self) -> None:
        super().__init__(residual_length=5)

    def _quantize(self, tensor: Tensor, axis: int = 0) -> Tensor:
        return tensor.clone()

    def _dequantize(self, q_tensor: Tensor) -> Tensor:
        return q_tensor


def exact_cache() -> Cache:
    return Cache(layers=[ExactLayer() for _ in range(2)])


@dataclass(frozen=True)
class Way:
    """Options of `generate`. plain: those that must give the same text. made: options that belong to a model."""

    options: dict[str, Any] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)
    made: Callable[[Any, MakeModel], dict[str, Any]] = lambda model, make_model: {}
    causal_only: bool = False
    lengths: tuple[int, ...] = (45, 26)


def _both(**options: Any) -> Way:
    return Way(options, options)


def _take_second_best(model: Any, input_ids: Tensor, logits_processor: Any, generation_config: Any, **_: Any) -> Tensor:
    """A decoding loop of one's own."""
    cache, fed = DynamicCache(), input_ids
    for _step in range(generation_config.max_new_tokens):
        out = model(fed, past_key_values=cache, use_cache=True)
        fed = out.logits[:, -1].topk(2).indices[:, 1:]
        input_ids = torch.cat((input_ids, fed), dim=1)
    return input_ids


WAYS = {
    "greedy": Way(),
    "sampling": _both(do_sample=True, temperature=2.0),
    "several sequences": _both(do_sample=True, num_return_sequences=3, top_k=20),
    "beams": _both(num_beams=3),
    "beams, several returned": _both(num_beams=4, num_return_sequences=3),
    "beam sampling": _both(num_beams=3, do_sample=True, temperature=2.0),
    "penalties": _both(repetition_penalty=1.4, no_repeat_ngram_size=2),
    "guidance": _both(guidance_scale=1.7),
    "custom_generate": Way(
        {"custom_generate": _take_second_best}, {"custom_generate": _take_second_best}, lengths=(45,)
    ),
    "static cache": Way({"cache_implementation": "static"}),
    "static cache, beams": Way({"cache_implementation": "static", "num_beams": 3}, {"num_beams": 3}),
    "given static cache": Way(made=lambda model, _: {"past_key_values": StaticCache(model.config, 80)}),
    "quantised cache": Way(made=lambda *_: {"past_key_values": exact_cache()}),
    "quantised cache, beams": Way(
        {"num_beams": 3}, {"num_beams": 3}, made=lambda *_: {"past_key_values": exact_cache()}
    ),
    "use_cache = False": Way({"use_cache": False}, causal_only=True),
    "prefill_chunk_size": Way({"prefill_chunk_size": 21}, causal_only=True),
    "prompt lookup": Way({"prompt_lookup_num_tokens": 3}, causal_only=True, lengths=(45,)),
    "assistant model": Way(
        made=lambda _, make_model: {"assistant_model": make_model(WINDOW)}, causal_only=True, lengths=(45,)
    ),
}


def generated(model: Any, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
    torch.manual_seed(4)
    found: Tensor = model.generate(ids, attention_mask=mask, **{"do_sample": False, "max_new_tokens": 12, **options})
    return found


def prompt_of(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Words that repeat, for those who look them up; the second row crosses the window while it decodes."""
    ids, mask = padded(list(lengths))
    ids[:, 20:40] = ids[:, :20] if len(lengths) == 1 else ids[:, 20:40]
    return ids, mask


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("way", WAYS)
def test_right_or_refused(make_model: MakeModel, request: pytest.FixtureRequest, way: str, subject: str) -> None:
    name, params = SUBJECTS[subject]
    if way == "quantised cache, beams" and Version("5.19") > TRANSFORMERS:
        reason = "transformers before 5.19 reorders a quantised cache's last tokens only, and finds none"
        request.applymarker(pytest.mark.xfail(raises=IndexError, strict=True, reason=reason))
    asked = WAYS[way]
    ids, mask = prompt_of(asked.lengths)
    model = put(make_model(WINDOW), name, params)
    options = {**asked.options, **asked.made(model, make_model)}
    if asked.causal_only and not IS_CAUSAL[subject]:
        with pytest.raises(ValueError, match=rf"under method '{name}' .* a token's logits depend on .*causal"):
            generated(model, ids, mask, **options)
        return
    found = generated(model, ids, mask, **options)
    materialised = put(make_model(WINDOW), name, params, attn_impl="reference")
    assert torch.equal(found, generated(materialised, ids, mask, **asked.plain))
    assert found.shape[1] == ids.shape[1] + 12
    assert len(set(found[0, ids.shape[1] :].tolist())) > 2, "the model says one word, the test shows nothing"


@pytest.mark.parametrize("subject", SUBJECTS)
def test_streaming(make_model: MakeModel, subject: str) -> None:
    class Kept(BaseStreamer):
        def __init__(self) -> None:
            self.pieces: list[Tensor] = []
            self.ended = False

        def put(self, value: Tensor) -> None:
            self.pieces.append(value.reshape(-1))

        def end(self) -> None:
            self.ended = True

    name, params = SUBJECTS[subject]
    ids, mask = prompt_of((45,))
    model = put(make_model(WINDOW), name, params)
    streamer = Kept()
    found = generated(model, ids, mask, streamer=streamer)
    assert torch.equal(found, generated(model, ids, mask))
    assert streamer.ended
    assert [len(piece) for piece in streamer.pieces] == [45, *[1] * 12]
    assert torch.equal(torch.cat(streamer.pieces), found[0])


@pytest.mark.skipif(Version("5.21") > TRANSFORMERS, reason="transformers has its fp8 backend since 5.21")
def test_a_cache_in_eight_bits_is_near(make_model: MakeModel) -> None:
    """transformers' fp8 backend needs nothing installed. The stock model within its window says how near is near."""
    ids, more = tokens(1, 45), tokens(1, 6, seed=1)

    def loss_of_precision(window: int, method: bool) -> float:
        model: Any = make_model(window)
        if method:
            put(model, window=window)
        out = []
        for cache in (DynamicCache(), QuantizedCache("fp8", model.config)):
            with torch.no_grad():
                model(ids, past_key_values=cache)
                out.append(model(more, past_key_values=cache).logits)
        return float((out[0] - out[1]).abs().max())

    stock, ours = loss_of_precision(64, method=False), loss_of_precision(WINDOW, method=True)
    assert 0 < ours < 2 * stock


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "offloaded cache": ({"cache_implementation": "offloaded"}, ValueError, "'offloaded' .* on the CPU; leave it out"),
    "offloaded static cache": (
        {"cache_implementation": "offloaded_static"}, ValueError, "'offloaded_static' .* on the CPU; leave it out",
    ),
    "contrastive search": ({"penalty_alpha": 0.6, "top_k": 4}, ValueError, "Contrastive Search requires `trust_remote"),
    "DoLa": ({"dola_layers": "high"}, ValueError, "Dola Generation requires `trust_remote"),
    "group beams": (
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, ValueError, "Group Beam Search requires",
    ),
    "constrained beams": (
        {"num_beams": 3, "force_words_ids": [[5]]}, ValueError, "Constrained Beam Search requires `trust_remote",
    ),
    "streaming beams": ({"num_beams": 3, "streamer": BaseStreamer()}, ValueError, "`streamer` cannot be used"),
}  # fmt: skip


@pytest.mark.parametrize("way", REFUSED)
def test_refused(make_model: MakeModel, way: str) -> None:
    """On a CPU, and with what transformers alone does: some searches have become code on its hub."""
    options, kind, words = REFUSED[way]
    ids, mask = prompt_of((45,))
    with pytest.raises(kind, match=words):
        generated(put(make_model(WINDOW)), ids, mask, **options)


@pytest.mark.parametrize("backend", ["quanto", "hqq"])
def test_a_backend_of_quantised_caches_that_is_not_installed_is_named(make_model: MakeModel, backend: str) -> None:
    module = {"quanto": "optimum", "hqq": "hqq"}[backend]
    try:
        __import__(module)
        pytest.skip(f"{module} is installed")
    except ImportError:
        pass
    ids, mask = prompt_of((45,))
    options = {"cache_implementation": "quantized", "cache_config": {"backend": backend}}
    with pytest.raises(ImportError, match=rf"(?i)install.*{backend}"):
        generated(put(make_model(WINDOW)), ids, mask, **options)


def test_continuous_batching_is_refused(make_model: MakeModel) -> None:
    """Its pages of a cache are read by transformers' own attention."""
    model: Any = put(make_model(WINDOW))
    config = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=0, pad_token_id=0)
    with pytest.raises(ValueError, match=r"gali\W* is not supported"):
        model.generate_batch([tokens(45).tolist()], generation_config=config)


def test_a_piece_of_nothing_but_padding_is_refused(make_model: MakeModel) -> None:
    """Pieces of 11 tokens, and 19 tokens of padding in the second row."""
    ids, mask = padded([45, 26])
    with pytest.raises(ValueError, match=r"row 1 up to token 10; .* prefill_chunk_size be larger than a row's padding"):
        generated(put(make_model(WINDOW)), ids, mask, prefill_chunk_size=11)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_several_turns_on_one_cache(make_model: MakeModel, subject: str) -> None:
    """A conversation that goes on from the cache of the turn before: as if it were decoded token by token."""
    name, params = SUBJECTS[subject]
    model: Any = put(make_model(WINDOW), name, params)
    cache = DynamicCache(config=model.config)
    ids = tokens(1, 27)
    first = generated(model, ids, torch.ones_like(ids), past_key_values=cache)
    turn = torch.cat((first, tokens(1, 5, seed=2)), dim=1)
    second = generated(model, turn, torch.ones_like(turn), past_key_values=cache)
    assert second.shape == (1, 27 + 12 + 5 + 12)
    if IS_CAUSAL[subject]:
        assert torch.equal(second[:, -12:], generated(model, turn, torch.ones_like(turn))[:, -12:])
    assert cache.get_seq_length() == second.shape[1] - 1


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["offloaded", "offloaded_static"])
def test_an_offloaded_cache_on_a_gpu(make_model: MakeModel, cache: str) -> None:
    model: Any = put(make_model(WINDOW).to("cuda"))  # type: ignore[arg-type]
    ids, mask = (x.to("cuda") for x in prompt_of((45, 26)))
    assert torch.equal(generated(model, ids, mask, cache_implementation=cache), generated(model, ids, mask))


def test_the_readme_has_these_ways() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("### Decoding and caches") : text.index("## Experiments")]
    rows = {part.strip() for row in re.findall(r"^\| (.+?) \|", table, re.MULTILINE) for part in row.split(";")}
    tested = {way.split(", ")[0] for way in WAYS if way != "greedy"} | REFUSED.keys()
    assert rows - {"way", "---"} == tested | {"streaming", "continuous batching"}


def test_logits_of_a_reference_are_not_those_of_another_method(make_model: MakeModel) -> None:
    """What is compared above differs between methods, so that a way that lost the method would be seen."""
    ids, mask = prompt_of((45, 26))
    texts = {
        subject: tuple(generated(put(make_model(WINDOW), *what), ids, mask)[0, 45:].tolist())
        for subject, what in SUBJECTS.items()
    }
    assert len(set(texts.values())) == len(texts)
    assert logits(make_model(WINDOW), ids).isfinite().all()
