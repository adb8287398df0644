"""Teacher-forced verdicts against what `generate` writes, and against logits of the whole vocabulary."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from comparison.probes import build_items, encoder
from comparison.request import Sizes, make_request
from comparison.scoring import continuation, score_answers, share_right
from comparison.texts import Text
from models.DPI.dpi import get_model_and_tokenizer
from models.DPI.methods import METHODS, build_method
from models.DPI.patches.Llama import install

WINDOW, TARGET = 512, 720
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return get_model_and_tokenizer("tiny", None, "repro_original", {}, dtype="float32", device="cpu")


@pytest.mark.parametrize("name", ["dpi", "repro_ntk", "repro_original"])
def test_the_verdict_is_that_of_greedy_decoding(tiny: Loaded, name: str) -> None:
    """On keys of which the methods find some and miss some; also that an answer is begun right is the same."""
    model, tokenizer = tiny
    install(model, build_method(name, METHODS[name].params_for(WINDOW, TARGET), WINDOW), WINDOW)
    text = Text("hills", "The hills were white, and nobody came to the door that day. " * 90, None)
    long = Text("long", "", list(range(10, 10 + TARGET)))
    request = make_request(
        model="tiny", window=WINDOW, target=TARGET, methods=(name,), tune=False, texts=None, dtype="float32",
        attn_impl="auto", seed=1, sizes=Sizes(lengths=(620, TARGET), depths=1, samples=1, texts=1),
    )  # fmt: skip
    items = [item for item in build_items(request, tokenizer, [long, text]) if item.probe.startswith("passkey")]
    assert len(items) == 4
    verdicts = []
    for item in items:
        [scored] = score_answers(model, [item.ids], [item.answer])
        prompt, answer = item.ids[: -item.answer], list(item.ids[-item.answer :])
        ids = torch.tensor([prompt])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=item.answer, do_sample=False, eos_token_id=None
        )
        written = made[0, len(prompt) :].tolist()
        assert share_right(scored.right, item.spans) == float(written == answer)
        verdicts.append(written == answer)
        first_wrong = next((n for n, good in enumerate(scored.right) if not good), item.answer)
        assert written[:first_wrong] == answer[:first_wrong]
        assert first_wrong == item.answer or written[first_wrong] != answer[first_wrong]
    if name != "repro_ntk":
        assert all(verdicts) == (name == "dpi"), "both verdicts occur"


def test_scores_are_those_of_all_logits(make_model: Callable[..., PreTrainedModel]) -> None:
    model = make_model(window=64)
    rows = torch.randint(1, 101, (3, 41), generator=torch.Generator().manual_seed(7))
    counts = [2, 5, 3]
    with torch.no_grad():
        whole = model(rows).logits.double().log_softmax(-1)
    found = score_answers(model, rows.tolist(), counts)
    for row, (count, scored) in enumerate(zip(counts, found, strict=True)):
        places = range(41 - count, 41)
        assert scored.nll == pytest.approx(-sum(float(whole[row, at - 1, rows[row, at]]) for at in places), abs=1e-4)
        assert scored.right == tuple(int(whole[row, at - 1].argmax()) == int(rows[row, at]) for at in places)


def test_a_loss_that_is_not_finite_is_an_error(make_model: Callable[..., PreTrainedModel]) -> None:
    model = make_model(window=64)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(FloatingPointError, match="the loss of an answer is nan at 9 tokens"):
        score_answers(model, [list(range(1, 10))], [2])


def test_the_continuation_is_what_stands_behind_the_prompt(tiny: Loaded) -> None:
    _, tokenizer = tiny
    encode = encoder(tokenizer)
    before = "What is the pass key? The pass key is"
    found = continuation(before, [(" 123456", True)], encode)
    assert encode(before) + list(found.ids) == encode(before + " 123456")
    assert (found.spans, found.dropped) == (((0, len(found.ids)),), 0)


def test_numbers_of_a_list_are_no_answers(tiny: Loaded) -> None:
    _, tokenizer = tiny
    parts = [(" 1.", False), (" apple", True), (" 2.", False), (" wing", True)]
    found = continuation("The words are:", parts, encoder(tokenizer))
    assert [tokenizer.decode(found.ids[start:stop]) for start, stop in found.spans] == [" apple", " wing"]


def test_a_token_across_the_boundary_goes_from_the_prompt() -> None:
    def encode(text: str) -> list[int]:  # pairs of characters
        return [hash(text[at : at + 2]) for at in range(0, len(text), 2)]

    found = continuation("abc", [("de", True), ("fg", True)], encode)
    assert found.dropped == 1
    assert list(found.ids) == encode("abcdefg")[1:]
    assert found.spans == ((0, 1), (1, 3)), "cd belongs to the first answer; ef and g are the second"


def test_a_share_needs_all_tokens_of_an_answer() -> None:
    assert share_right([True, False, True, True], [(0, 2), (2, 4)]) == 0.5
    assert share_right([False, True, True], [(1, 3)]) == 1.0
    assert share_right([True, True, False], [(0, 3)]) == 0.0
