import json
import math
from collections.abc import Sequence
from pathlib import Path

import pandas
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from models.DPI.losses import token_losses
from tasks import get_task
from tasks.base import Line
from tasks.errors import UserError
from tasks.options import Options
from tasks.pg19 import STEP, cumulative_losses, score_lines
from tests.pipeline.small import WORDS, tiny_model, word_tokenizer
from tests.tasks.fakes import FakeEngine, options

TASK = get_task("pg19")
TOKENIZER = word_tokenizer()


def write_book(folder: Path, name: str, words: int) -> None:
    folder.mkdir(exist_ok=True)
    vocabulary = WORDS.split()
    (folder / f"{name}.txt").write_text(" ".join(vocabulary[(i * i) % len(vocabulary)] for i in range(words)))


@pytest.fixture
def books(tmp_path: Path) -> Path:
    folder = tmp_path / "books"
    write_book(folder, "b_long", 2600)
    write_book(folder, "a_short", 1100)
    (folder / "notes.md").write_text("not a book")
    return folder


class LossEngine(FakeEngine):
    """A model that only gives losses."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(TOKENIZER, lambda prompt: "")
        self.model = model

    @override
    def token_losses(self, input_ids: Sequence[int], slice_tokens: int) -> Tensor:
        return token_losses(self.model, torch.tensor([list(input_ids)]), slice_tokens)[0]


def predict(opts: Options, model: PreTrainedModel | None = None) -> list[Line]:
    engine = LossEngine(model or tiny_model())
    return [TASK.predict(engine, opts, "pg19", record) for record in TASK.records(opts, "pg19")]


def pg19_options(folder: Path | None, **keys: object) -> Options:
    return options("pg19", **{"max_pe": 2500, "data_dir": folder, **keys})


def test_books_are_the_folders_texts_by_name(books: Path) -> None:
    assert [record["id"] for record in TASK.records(pg19_options(books), "pg19")] == ["a_short", "b_long"]
    with pytest.raises(UserError, match=r"no \*.txt"):
        list(TASK.records(pg19_options(books / "none"), "pg19"))


COMMIT = "c" * 40


def test_books_come_from_the_hub_without_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [{"short_book_title": "A Book", "text": "The grass"}, {"short_book_title": "A Book", "text": "The sky"}]
    (tmp_path / "data").mkdir()
    pandas.DataFrame(rows).to_parquet(tmp_path / "data/test-00000-of-00001.parquet")
    asked: list[tuple[str, str]] = []

    def folder(repository: str, revision: str) -> Path:
        asked.append((repository, revision))
        return tmp_path

    monkeypatch.setattr("models.hub.folder_of_dataset", folder)
    opts = pg19_options(None, data_revision=COMMIT)
    records = list(TASK.records(opts, "pg19"))
    assert [record["id"] for record in records] == ["000 A Book", "001 A Book"]
    assert asked == [("emozilla/pg19-test", COMMIT)]
    assert TASK.data_source(opts) == {"repository": "emozilla/pg19-test", "revision": COMMIT}
    assert TASK.prompt(opts, "pg19", records[1], TOKENIZER) == TOKENIZER("The sky")["input_ids"]


def test_a_hub_out_of_reach_is_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.hub.silence", lambda: "the hub is gone")
    with pytest.raises(UserError, match=r"the hub is gone, and the cache does not have it.*data_dir"):
        list(TASK.records(pg19_options(None, data_revision=COMMIT), "pg19"))


def test_prompt_is_cut_to_the_target(books: Path) -> None:
    opts = pg19_options(books, max_pe=100)
    for record in TASK.records(opts, "pg19"):
        ids = TASK.prompt(opts, "pg19", record, TOKENIZER)
        assert len(ids) == 100
        assert ids == TOKENIZER(record["path"].read_text())["input_ids"][:100]


def test_losses_agree_with_the_stock_models_logits(books: Path) -> None:
    """An independent computation: all logits at once, log-softmax, in fp64."""
    opts = pg19_options(books, stride=333)
    model = tiny_model()
    lines = predict(opts, model)
    sums = dict.fromkeys((1024, 2048), 0.0)
    counts = dict.fromkeys((1024, 2048), 0)
    by_book: dict[int, list[float]] = {1024: [], 2048: []}
    for record, line in zip(TASK.records(opts, "pg19"), lines, strict=True):
        ids = torch.tensor([TASK.prompt(opts, "pg19", record, TOKENIZER)])
        with torch.no_grad():
            logits = model(ids).logits.double().log_softmax(-1)
        losses = -logits[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
        assert line["scored_tokens"] == len(losses) == ids.shape[1] - 1
        assert line["loss_sum"] == pytest.approx(losses.sum().item(), rel=1e-5)
        for length in sums:
            if ids.shape[1] >= length:
                sums[length] += losses[: length - 1].sum().item()
                counts[length] += length - 1
                by_book[length].append(losses[: length - 1].mean().exp().item())
    documents = TASK.score(opts, {"pg19": lines})
    assert documents["result.json"] == {
        str(length): pytest.approx(math.exp(sums[length] / counts[length]), rel=1e-5) for length in sums
    }
    steps = documents["result_detail.json"]["steps"]
    for length, values in by_book.items():
        assert steps[str(length)]["mean_of_books"]["score"] == pytest.approx(sum(values) / len(values), rel=1e-5)
        assert steps[str(length)]["mean_of_books"]["count"] == len(values)
        assert steps[str(length)]["scored_tokens"] == counts[length]


@pytest.mark.parametrize("stride", [1, 7, 1023, 1024, 2498, 2499, 2500, 10_000])
def test_every_token_after_the_first_is_scored_once_whatever_the_stride(books: Path, stride: int) -> None:
    opts = pg19_options(books, max_pe=97 if stride == 1 else 2500)
    reference = predict(opts)
    assert [line["scored_tokens"] for line in reference] == [line["prefill_len"] - 1 for line in reference]
    strided = predict(opts.model_copy(update={"stride": stride}))
    for line, expected in zip(strided, reference, strict=True):
        assert line["scored_tokens"] == expected["scored_tokens"]
        assert line["loss_sum"] == pytest.approx(expected["loss_sum"], rel=1e-6)


def test_logits_exist_for_one_stride_at_a_time(books: Path) -> None:
    opts = pg19_options(books, stride=100)
    model = tiny_model()
    sizes = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-2]))
    predict(opts, model)
    assert max(sizes) == 100


def test_a_length_that_a_text_just_reaches_counts() -> None:
    assert "1024" in cumulative_losses([1.0] * (STEP - 1))["loss_sums"]
    assert "1024" not in cumulative_losses([1.0] * (STEP - 2))["loss_sums"]
    sums = cumulative_losses([float(i) for i in range(2 * STEP)])["loss_sums"]
    assert sums == {"1024": sum(range(1023)), "2048": sum(range(2047))}


def test_token_weighted_and_book_means_differ_as_they_should() -> None:
    lines = [cumulative_losses([2.0] * 1023), cumulative_losses([1.0] * 3000)]
    documents = score_lines(lines)
    assert documents["result.json"]["1024"] == pytest.approx(math.exp(1.5))
    assert documents["result.json"]["2048"] == pytest.approx(math.e)
    steps = documents["result_detail.json"]["steps"]
    mean, stderr = (math.e + math.e**2) / 2, (math.e**2 - math.e) / 2
    half = 12.7062 * stderr  # Student's t with one degree of freedom
    books = steps["1024"]["mean_of_books"]
    assert (books["score"], books["stderr"], books["count"]) == pytest.approx((mean, stderr, 2))
    assert books["interval"] == pytest.approx((1.0, mean + half), rel=1e-4)
    # Mean losses 2 and 1 have the mean 1.5 and its standard error 0.5.
    perplexity = {"score": math.exp(1.5), "stderr": 0.5 * math.exp(1.5), "count": 2}
    found = {key: steps["1024"]["perplexity"][key] for key in perplexity}
    assert found == pytest.approx(perplexity)
    assert steps["2048"]["mean_of_books"] == {
        "score": pytest.approx(math.e),
        "stderr": None,
        "count": 1,
        "interval": None,
    }
    whole = documents["result_detail.json"]["whole_texts"]
    assert whole["perplexity"]["score"] == pytest.approx(math.exp((2 * 1023 + 3000) / 4023))


def test_texts_too_short_for_a_step_are_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    documents = score_lines([cumulative_losses([1.0] * 10)])
    assert documents["result.json"] == {}
    assert "no text has 1024 tokens" in caplog.text


def test_an_empty_text_fails_as_a_record(tmp_path: Path) -> None:
    (tmp_path / "e.txt").write_text("")
    with pytest.raises(ValueError, match="fewer than two tokens"):
        predict(pg19_options(tmp_path))


def test_step_sets_the_lengths_that_are_scored() -> None:
    losses = [float(i) for i in range(1, 1100)]
    line = cumulative_losses(losses, 512)
    assert list(line["loss_sums"]) == ["512", "1024"]
    result = score_lines([line], 512)["result.json"]
    assert result["512"] == pytest.approx(math.exp(sum(losses[:511]) / 511))


def test_a_loss_beyond_all_bounds_has_a_finite_error() -> None:
    lines = [
        {"scored_tokens": 1023, "loss_sum": 9.0, "loss_sums": {"1024": loss}, "prefill_len": 1024}
        for loss in (2147483648, 9.0)
    ]
    json.dumps(score_lines(lines), allow_nan=False)
