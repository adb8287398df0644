"""The trainer of the embedded model: batches, answers, the files that it writes, and that it learns at all."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tools.tiny_data import BOS, EOS, Batches, Corpus, read_texts, train_tokenizer
from tools.train_tiny import LOG_NAME, Recipe, WeightedLoss, build_model, build_optimizer, main, sharpen, train

WINDOW = 251
WORDS = ["the", "sea", "and", "a", "ship", "went", "out", "of", "harbour", "before", "dawn", "nobody", "saw", "407"]


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two books of made-up paragraphs."""
    folder = tmp_path_factory.mktemp("books")
    rng = random.Random(3)
    for book in ("a", "b"):
        paragraphs = [" ".join(rng.choices(WORDS, k=30)).capitalize() + "." for _ in range(120)]
        (folder / f"{book}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tokenizer(corpus_folder: Path) -> PreTrainedTokenizerFast:
    return train_tokenizer(read_texts(corpus_folder), 400)


@pytest.fixture(scope="module")
def batches(corpus_folder: Path, tokenizer: PreTrainedTokenizerFast) -> Batches:
    backend = tokenizer.backend_tokenizer
    corpus = Corpus.encode(read_texts(corpus_folder), backend)
    return Batches(corpus, backend, steps=3, batch_size=20, window=WINDOW, passkey_fraction=0.5, seed=5)


def test_tokenizer_keeps_digits_apart_and_loses_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    text = " The key is 40771!\n\tÅ 日本 \x00"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert str(tokenizer.decode(ids, skip_special_tokens=True)) == text
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert [piece for piece in pieces if any(c.isdigit() for c in piece)] == list("40771")


def test_answers_are_the_key_of_their_own_prompt(batches: Batches, tokenizer: PreTrainedTokenizerFast) -> None:
    depths = []
    for tokens, is_answer in (batches[step] for step in range(len(batches))):
        assert tokens.shape == (20, WINDOW + 1)
        assert is_answer.shape == (20, WINDOW)
        assert is_answer[:10].any(-1).all()
        assert not is_answer[10:].any()
        for row, mask in zip(tokens[:10], is_answer[:10], strict=True):
            answer = str(tokenizer.decode(row[1:][mask]))
            start = int(mask.nonzero()[0]) + 1
            prompt = str(tokenizer.decode(row[:start]))
            prompt = prompt[prompt.index(f"{BOS}There is an important info") :]
            key = re.search(r"The pass key is (\d+)\. Remember it", prompt)
            assert key is not None
            assert answer == f" {key[1]}.{EOS}"
            assert prompt.endswith("What is the pass key? The pass key is")
            depths.append(key.start() / len(prompt))
    assert min(depths) < 0.45, "the key is never in the first part of the prompt"
    assert max(depths) > 0.6, "the key is never in the last part of the prompt"


def test_passkey_rows_vary(batches: Batches, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [str(tokenizer.decode(row)) for step in range(3) for row in batches[step][0][:10]]
    grass = ["The grass is green. The sky" in row for row in rows]
    assert 0 < sum(grass) < len(rows), "one of the two haystacks is missing"
    whole = [row.startswith(BOS) and row.endswith(EOS) for row in rows]
    assert 0 < sum(whole) < len(rows), "prompts should fill the window or stand amid text"


def test_text_rows_begin_anywhere(batches: Batches, tokenizer: PreTrainedTokenizerFast) -> None:
    first = torch.cat([batches[step][0][10:, 0] for step in range(3)])
    begun = (first == tokenizer.bos_token_id).float().mean()
    assert 0.2 < begun < 0.8


def test_batches_repeat_by_seed_and_step(batches: Batches, corpus_folder: Path) -> None:
    torch.testing.assert_close(batches[2], batches[2], rtol=0, atol=0)
    assert not torch.equal(batches[0][0], batches[1][0])
    other = Batches(
        batches.corpus, batches.tokenizer, steps=3, batch_size=20, window=WINDOW, passkey_fraction=0.5, seed=6
    )
    assert not torch.equal(batches[0][0], other[0][0])


def test_loss_weighs_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    """Against the mean computed token by token."""
    recipe = Recipe(layers=1, hidden_size=32, intermediate_size=48, heads=2, kv_heads=1, head_dim=16, window=37)
    model = build_model(recipe, tokenizer)
    tokens = torch.randint(2, len(tokenizer), (3, 38))
    is_answer = torch.zeros(3, 37, dtype=torch.bool)
    is_answer[0, 30:34] = is_answer[2, 5:9] = True
    loss, answer_loss, text_loss = WeightedLoss(model, 8.0)(tokens, is_answer)
    log_probabilities = model(input_ids=tokens).logits.double().log_softmax(-1)
    total = weight = 0.0
    for b in range(3):
        for t in range(37):
            w = 8.0 if is_answer[b, t] else 1.0
            total -= w * log_probabilities[b, t, tokens[b, t + 1]].item()
            weight += w
    assert loss.item() == pytest.approx(total / weight, rel=1e-5)
    share = 8.0 * 8 / weight
    assert loss.item() == pytest.approx(share * answer_loss.item() + (1 - share) * text_loss.item(), rel=1e-5)


def test_sharpening_multiplies_every_attention_logit(tokenizer: PreTrainedTokenizerFast) -> None:
    """Seen from outside: log-ratios of a row's attention weights grow by the factor."""
    recipe = Recipe(layers=1, hidden_size=32, intermediate_size=48, heads=2, kv_heads=1, head_dim=16, window=37)
    model = build_model(recipe, tokenizer).eval()
    model.set_attn_implementation("eager")
    tokens = torch.randint(2, len(tokenizer), (1, 31))

    def log_ratios() -> torch.Tensor:
        weights = model(input_ids=tokens, output_attentions=True).attentions[0][0, :, -1]  # (H, T)
        ratios: torch.Tensor = (weights / weights[:, :1]).log()
        return ratios

    before = log_ratios()
    sharpen(model, 1.3)
    torch.testing.assert_close(log_ratios(), 1.3 * before, rtol=1e-3, atol=1e-5)


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    recipe = Recipe(steps=50, warmup_steps=10, learning_rate=0.5)
    _, schedule = build_optimizer(torch.nn.Linear(2, 2), recipe, torch.device("cpu"))
    rates = []
    for _ in range(50):
        rates.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == pytest.approx(0.5)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[30] == pytest.approx(0.25)
    assert rates[-1] < 0.001


def test_learns(batches: Batches, tokenizer: PreTrainedTokenizerFast) -> None:
    """The made-up text has 14 words; a few steps bring its loss far below a guess."""
    recipe = Recipe(
        layers=1, hidden_size=48, intermediate_size=64, heads=2, kv_heads=1, head_dim=24, window=WINDOW,
        steps=30, batch_size=20, warmup_steps=3, learning_rate=0.01,
    )  # fmt: skip
    longer = Batches(
        batches.corpus, batches.tokenizer, steps=30, batch_size=20, window=WINDOW, passkey_fraction=0.1, seed=5
    )
    records = list(train(build_model(recipe, tokenizer), longer, recipe, device=torch.device("cpu"), compiled=False))
    assert [record["step"] for record in records] == [25, 30]
    assert records[-1]["text_loss"] < 4.0 < torch.tensor(float(len(tokenizer))).log()


def test_command_writes_a_model_that_loads(corpus_folder: Path, tmp_path: Path) -> None:
    options = (
        "--steps 3 --log-every 2 --batch-size 2 --vocab-size 300 --layers 1 --hidden-size 32 --intermediate-size 40"
        f" --heads 2 --kv-heads 1 --head-dim 16 --window {WINDOW} --workers 0 --device cpu"
    )
    main(["--data", str(corpus_folder), "--out", str(tmp_path / "m"), *options.split()])
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert model.dtype == torch.bfloat16
    assert model.config.max_position_embeddings == WINDOW
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    output = model.generate(**tokenizer("The sea", return_tensors="pt"), max_new_tokens=2)
    assert output.shape[1] <= len(tokenizer("The sea")["input_ids"]) + 2
    head, *records = map(json.loads, (tmp_path / "m" / LOG_NAME).read_text(encoding="utf-8").splitlines())
    assert head["window"] == WINDOW
    assert head["parameters"] == model.num_parameters()
    assert [record["step"] for record in records] == [2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--passkey-fraction", "1.5"], "passkey-fraction is 1.5"),
        (["--steps", "0"], "--steps"),
    ],
)
def test_refuses_a_bad_recipe(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--data", "x", "--out", "y", *options])
    assert message in capsys.readouterr().err


def test_refuses_what_cannot_be_learnt_from(batches: Batches, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no text"):
        read_texts(tmp_path)
    shapes: dict[str, Any] = {"steps": 1, "batch_size": 4, "passkey_fraction": 0.5, "seed": 0}
    with pytest.raises(ValueError, match="--window 60 is too short"):
        Batches(batches.corpus, batches.tokenizer, window=60, **shapes)
    with pytest.raises(ValueError, match="tokens; a --window of 100000"):
        Batches(batches.corpus, batches.tokenizer, window=100_000, **shapes)
