import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from models.DPI import build_method, install
from models.DPI.methods import METHODS
from models.DPI.patches.generation import static_cache
from pipeline.engine import ModelEngine, bytes_per_token, end_token_ids
from tasks.base import Generation, Request
from tests.models.DPI.helpers import CHUNKS, NOISY, PARAMS
from tests.pipeline.small import tiny_model, word_tokenizer

PROMPT = "The grass is green . The sky is blue ."
SET_ASIDE = "decoding is plainly greedy; the model's own generation settings are set aside: "


@pytest.fixture
def engine() -> ModelEngine:
    return ModelEngine(tiny_model(), word_tokenizer())


def greedy(model: LlamaForCausalLM, ids: Sequence[int], count: int, stop: set[int]) -> list[int]:
    """Greedy decoding by hand: a whole forward pass a token."""
    ids = list(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stop:
            break
    return ids


def ask(engine: ModelEngine, ids: Sequence[int], new: int, **keys: Any) -> Generation:
    """One request by itself; its error is raised."""
    (found,) = engine.generate([Request(ids, new, **keys)])
    if isinstance(found, FloatingPointError):
        raise found
    return found


def test_generation_is_greedy_and_counted(engine: ModelEngine) -> None:
    ids = engine.tokenizer(PROMPT)["input_ids"]
    expected = greedy(engine.model, ids, 7, stop={2})
    generation = ask(engine, ids, 7)
    assert generation.text == engine.tokenizer.decode(expected[len(ids) :], skip_special_tokens=True)
    assert (generation.prompt_tokens, generation.total_tokens) == (len(ids), len(expected))


def test_stop_tokens_end_the_text(engine: ModelEngine) -> None:
    ids = engine.tokenizer(PROMPT)["input_ids"]
    third = greedy(engine.model, ids, 3, stop=set())[-1]
    expected = greedy(engine.model, ids, 20, stop={third, 2})
    generation = ask(engine, ids, 20, stop_token_ids=(third,))
    assert generation.total_tokens == len(expected) < len(ids) + 20


def test_min_new_tokens_hold_the_end_back(engine: ModelEngine) -> None:
    ids = engine.tokenizer(PROMPT)["input_ids"]
    first = greedy(engine.model, ids, 1, stop=set())[-1]
    assert ask(engine, ids, 5, stop_token_ids=(first,)).new_tokens == 1
    assert ask(engine, ids, 5, stop_token_ids=(first,), min_new_tokens=3).new_tokens >= 3


def prompts(engine: ModelEngine, lengths: Sequence[int]) -> list[list[int]]:
    """Words at random."""
    draw = random.Random(7)
    return [[1, *(draw.randrange(3, len(engine.tokenizer)) for _ in range(length - 1))] for length in lengths]


LENGTHS = {"within": [9, 20, 1], "beyond": [53, 35, 44], "both": [51, 7, 32, 33], "equal": [41, 41, 41]}
BATCHES: dict[str, tuple[str, dict[str, Any], str, bool]] = {
    **{f"{name} both": (name, params, "both", False) for name, params in PARAMS.items()},
    "dpi in chunks both": ("dpi", CHUNKS, "both", False),
    "dpi noisy both": ("dpi", NOISY, "both", False),
    **{f"dpi in chunks {lengths}": ("dpi", CHUNKS, lengths, False) for lengths in ("within", "beyond", "equal")},
    **{f"{name} static": (name, PARAMS[name], "both", True) for name in ("dpi", "repro_chunkllama")},
}
assert PARAMS.keys() == METHODS.keys()


@pytest.mark.parametrize("case", BATCHES)
def test_a_batch_is_each_row_alone(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts and counts, for methods whose positions depend on each row's own length too. Rows end at different steps.

    static: as where decoding is replayed from a CUDA graph.
    """
    name, params, lengths, static = BATCHES[case]
    monkeypatch.setattr("pipeline.engine.replays_decoding", lambda *_: static)
    engine = ModelEngine(install(tiny_model(32), build_method(name, params), 32), word_tokenizer())
    rows = prompts(engine, LENGTHS[lengths])
    stop = tuple(range(3, 12))
    together = engine.generate([Request(row, 8, stop) for row in rows])
    assert together == [ask(engine, row, 8, stop_token_ids=stop) for row in rows]
    if lengths == "both":
        assert len({found.new_tokens for found in together if isinstance(found, Generation)}) > 1


def test_a_static_cache_is_no_larger_than_its_batch(engine: ModelEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """`generate` itself would make every later one as long as the longest before."""
    monkeypatch.setattr("pipeline.engine.replays_decoding", lambda *_: True)
    made: list[int] = []

    def watch(model: Any, tokens: int) -> Any:
        cache = static_cache(model, tokens)
        made.append(tokens)
        return cache

    monkeypatch.setattr("pipeline.engine.static_cache", watch)
    for length in (40, 9, 23):
        ask(engine, prompts(engine, [length])[0], 5)
    assert made == [45, 14, 28]


def test_requests_of_a_batch_end_alike(engine: ModelEngine) -> None:
    with pytest.raises(ValueError, match="equal in all but their prompts"):
        engine.generate([Request([1, 5], 3), Request([1, 5], 4)])


@pytest.mark.parametrize(
    ("prompt", "said"), [([], "has no tokens"), ([1, 5000], "token id 5000, and .* vocabulary"), ([-1, 3], "id -1")]
)
def test_a_prompt_that_is_none(engine: ModelEngine, prompt: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        engine.generate([Request([1, 5], 3), Request(prompt, 3)])


OWN_SETTINGS = {
    "repetition_penalty": 1.8,
    "no_repeat_ngram_size": 2,
    "suppress_tokens": [5, 6],
    "length_penalty": 0.4,
    "num_beams": 3,
    "min_new_tokens": 9,
    "return_dict_in_generate": True,
    "prompt_lookup_num_tokens": 2,
    "temperature": 0.6,
    "do_sample": True,
}


@pytest.mark.parametrize("key", OWN_SETTINGS)
def test_a_models_own_generation_settings_change_nothing(key: str, caplog: pytest.LogCaptureFixture) -> None:
    plain = ModelEngine(tiny_model(), word_tokenizer())
    ids = plain.tokenizer(PROMPT)["input_ids"]
    model = tiny_model()
    setattr(model.generation_config, key, OWN_SETTINGS[key])
    caplog.clear()
    engine = ModelEngine(model, word_tokenizer())
    assert ask(engine, ids, 30) == ask(plain, ids, 30)
    silent = key in ("temperature", "do_sample", "return_dict_in_generate")
    said = [record.getMessage() for record in caplog.records if record.name == "pipeline.engine"]
    assert said == ([] if silent else [f"{SET_ASIDE}{key} = {OWN_SETTINGS[key]}"])
    settings = engine.generation_settings()
    assert settings["set_aside"].keys() == (set() if silent else {key})
    assert settings["eos_token_id"] == [2]
    assert json.loads(json.dumps(settings)) == settings


def test_a_model_whose_settings_change_nothing_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    for key, value in {
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
        "max_length": 4096,
    }.items():
        setattr(model.generation_config, key, value)
    assert ModelEngine(model, word_tokenizer()).generation_settings()["set_aside"] == {}
    assert not caplog.records


def test_losses_have_one_entry_less_than_tokens(engine: ModelEngine) -> None:
    losses = engine.token_losses(engine.tokenizer(PROMPT)["input_ids"], 4)
    assert losses.shape == (len(engine.tokenizer(PROMPT)["input_ids"]) - 1,)
    assert losses.dtype == torch.float32
    assert losses.device.type == "cpu"


def test_end_tokens_come_from_tokenizer_and_generation_configuration() -> None:
    model, tokenizer = tiny_model(), word_tokenizer()
    model.generation_config.eos_token_id = [5, 2]
    assert end_token_ids(model, tokenizer) == [2, 5]
    model.generation_config.eos_token_id = None
    tokenizer.add_tokens(["<|eot_id|>"])
    assert end_token_ids(model, tokenizer) == [2, len(tokenizer) - 1]


def spoiled(token: int) -> ModelEngine:
    """An engine whose model gives NaN from the first place on where `token` is read."""
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("nan")
    return ModelEngine(model, word_tokenizer())


def test_losses_that_are_not_finite_are_an_error_with_the_first_position(
    engine: ModelEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = engine.tokenizer(PROMPT)["input_ids"]
    assert torch.isfinite(engine.token_losses(ids, 4)).all()
    with pytest.raises(FloatingPointError, match=r"is nan .*output of model\.embed_tokens, at position 2"):
        spoiled(ids[2]).token_losses(ids, 4)
    losses = torch.ones(1, 9)  # of tokens 1 to 9
    losses[0, 3], losses[0, 6] = torch.inf, torch.nan
    monkeypatch.setattr("pipeline.engine.token_losses", lambda *_: losses)
    with pytest.raises(FloatingPointError, match=r"token at position 4 is inf \(2 of 9 losses are not finite\)"):
        engine.token_losses(ids, 4)


def test_logits_that_are_not_finite_are_an_error_with_the_first_position(engine: ModelEngine) -> None:
    ids = engine.tokenizer(PROMPT)["input_ids"]
    with pytest.raises(
        FloatingPointError, match=rf"position {len(ids)} \(new token 0\) are not finite: .* nan; .* position 2"
    ):
        ask(spoiled(ids[2]), ids, 4)
    first, second = greedy(engine.model, ids, 2, stop=set())[-2:]
    assert first not in ids
    assert first != second
    with pytest.raises(FloatingPointError, match=rf"position {len(ids) + 1} \(new token 1\) .*at position {len(ids)}$"):
        ask(spoiled(first), ids, 4, min_new_tokens=4)


def test_in_a_batch_the_row_that_is_not_finite_has_the_error(engine: ModelEngine) -> None:
    ids = engine.tokenizer(PROMPT)["input_ids"]
    other = [token for token in prompts(engine, [30])[0] if token != ids[2]]
    broken = spoiled(ids[2])
    expected = ask(broken, other, 4)
    first, second, third = broken.generate([Request(other, 4), Request(ids, 4), Request(other[:9], 4)])
    assert first == expected
    assert isinstance(second, FloatingPointError)
    assert f"position {len(ids)} (new token 0)" in str(second)
    assert isinstance(third, Generation)


def test_what_a_row_is_given_after_its_end_does_not_count(engine: ModelEngine) -> None:
    """The end token's own logits are not finite: it is fed to rows that have ended, while others go on."""
    ids = engine.tokenizer(PROMPT)["input_ids"]
    end = greedy(engine.model, ids, 1, stop=set())[-1]
    assert end not in ids
    broken = spoiled(end)
    other = [token for token in prompts(engine, [30])[0] if token not in (end, 2)]
    found = broken.generate([Request(ids, 6, (end,)), Request(other, 6, (end,))])
    assert found[0] == Generation(str(broken.tokenizer.decode([end])), len(ids), 1)


def test_logits_that_are_infinite_are_an_error(engine: ModelEngine) -> None:
    with torch.no_grad():
        engine.model.get_output_embeddings().weight[5] = float("inf")
    with pytest.raises(FloatingPointError, match=r"not finite: .*in the output of lm_head"):
        ask(engine, engine.tokenizer(PROMPT)["input_ids"], 2)


def test_off_a_gpu_memory_says_nothing_of_batches(engine: ModelEngine) -> None:
    assert engine.batch_tokens() is None


def test_memory_of_a_token() -> None:
    """By hand: 2 layers, 2 key heads of 8; MLP 48, hidden 32; 4 bytes a number."""
    assert bytes_per_token(tiny_model().config, 4) == (2 * 2 * 2 * 8 * 4, (3 * 48 + 2 * 32) * 4)


@pytest.mark.gpu
def test_on_a_gpu_a_batch_fits_into_what_is_free() -> None:
    engine = ModelEngine(tiny_model().to("cuda"), word_tokenizer())  # type: ignore[arg-type]
    tokens = engine.batch_tokens()
    assert tokens is not None
    free = torch.cuda.mem_get_info()[0]
    assert 0 < tokens * sum(bytes_per_token(engine.model.config, 4)) <= free
