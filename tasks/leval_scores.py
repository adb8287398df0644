"""Scores of L-Eval's prediction lines, with the names and the four decimals of its own scorer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from tasks.errors import BadFieldError
from tasks.metrics import extract
from tasks.metrics.bootstrap import bootstrap_stderr
from tasks.metrics.exact_match import SearchedPart, exact_match
from tasks.metrics.rouge import rouge_1_2_l
from tasks.metrics.summary import in_percent, summarise
from tasks.metrics.token_f1 import qa_f1
from tasks.results import Score

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")

Pair = tuple[str, str]
"""What is compared: the answer found in a prediction, and the reference."""

_SINGLE_OPTION = frozenset({"quality", "tpo"})
TURNS = 3


@dataclass(frozen=True)
class DatasetScore:
    """A data set's score in percent and the official scorer's metrics.

    parts: the scores that this one is the mean of, by the name of their metrics, where it is a mean.
    """

    score: Score
    metrics: dict[str, Any]
    parts: dict[str, Score] = field(default_factory=dict)


def score_dataset(dataset: str, lines: Sequence[Mapping[str, Any]], searched: SearchedPart = "whole") -> DatasetScore:
    """Score one data set's prediction lines. searched: see `exact_match`.

    Raises `BadFieldError` for a field that is missing or cannot be scored.
    """
    key = _prediction_key(dataset, lines)
    predictions = [(_text_of(dataset, line, key), _text_of(dataset, line, "gt")) for line in lines]
    if dataset == "topic_retrieval_longchat":
        return _topic_retrieval(predictions, lines, searched)
    if dataset == "sci_fi":
        return _science_fiction(predictions, lines, searched)
    kind = lines[0]["evaluation"]
    if kind == "exam":
        pairs = [
            _of_line(line, _closed_ended_pair, dataset, *pair) for line, pair in zip(lines, predictions, strict=True)
        ]
        return _exam(pairs, searched)
    return _f1(predictions) if kind == "f1" else _rouge(predictions)


def _prediction_key(dataset: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """The field with the prediction: "pred", or "<model>_pred" as L-Eval's own programs call it."""
    key = next((key for key in lines[0] if key == "pred" or key.endswith("_pred")), None)
    if key is None:
        raise BadFieldError(lines[0], f"{dataset!r}: predictions have neither 'pred' nor '<model>_pred'")
    return key


def _text_of(dataset: str, line: Mapping[str, Any], key: str) -> str:
    """A field as text; numbers, which some programs write for answers, as they are written."""
    if key not in line:
        raise BadFieldError(line, f"{dataset!r}: a prediction has no {key!r}")
    value = line[key]
    if not isinstance(value, str | int | float):
        raise BadFieldError(line, f"{key} = {repr(value)[:100]}: must be a text")
    return str(value)


def _of_line(line: Mapping[str, Any], read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `read` finds in a line's fields. What it refuses is a fault of the line's reference."""
    try:
        return read(*args, **kwargs)
    except ValueError as error:
        raise BadFieldError(line, f"gt: {error}") from None


def _closed_ended_pair(dataset: str, prediction: str, reference: str) -> Pair:
    if dataset in _SINGLE_OPTION:
        return extract.single_option(prediction), extract.reference_options(reference)
    if dataset == "coursera":
        return extract.several_options(prediction), extract.reference_options(reference)
    if dataset == "gsm100":
        return extract.math_answer(prediction), extract.math_answer(reference)
    if dataset == "codeU":
        return extract.code_answer(prediction, reference), extract.code_reference(reference)
    return prediction, reference


def _exam(pairs: Sequence[Pair], searched: SearchedPart) -> DatasetScore:
    score = summarise([exact_match(*pair, searched) for pair in pairs])
    return _metrics({"exact_match": score.score}, pairs, score)


def _f1(pairs: Sequence[Pair]) -> DatasetScore:
    score = summarise([qa_f1(*pair) for pair in pairs])
    return _metrics({"f1": score.score}, pairs, score)


def _rouge(pairs: Sequence[Pair]) -> DatasetScore:
    """Means of ROUGE-1, -2 and -L, and the geometric mean of the three means."""
    values = [rouge_1_2_l(*pair) for pair in pairs]
    means = [_mean(column) for column in zip(*values, strict=True)]
    named = {f"rouge/{name}": 100 * mean for name, mean in zip(("rouge1", "rouge2", "rougeL"), means, strict=True)}
    import torch  # as in `tasks.metrics.bootstrap`

    mean = float(_geometric_mean(torch.tensor([means], dtype=torch.float64)))
    stderr = bootstrap_stderr(values, _geometric_mean)
    # No record has a mark of its own: what one adds to the score varies as much as the standard error says.
    score = in_percent(mean, stderr, len(pairs) * (stderr or 0.0) ** 2, len(pairs))
    return _metrics({**named, "rouge/geometric_mean": 100 * mean}, pairs, score)


def _topic_retrieval(pairs: Sequence[Pair], lines: Sequence[Mapping[str, Any]], searched: SearchedPart) -> DatasetScore:
    """Exact match of the first, second and third topic, and their mean."""
    # Files of other programs do not say which question a line answers, but hold all three in order.
    turns = [line.get("turn", number % TURNS) for number, line in enumerate(lines)]
    parts = {
        f"first {turn + 1} sentence retrieval score": _exam(chosen, searched)
        for turn in range(TURNS)
        if (chosen := [pair for pair, its_turn in zip(pairs, turns, strict=True) if its_turn == turn])
    }
    return _mean_of_parts(parts, [exact_match(*pair, searched) for pair in pairs])


def _science_fiction(
    predictions: Sequence[Pair], lines: Sequence[Mapping[str, Any]], searched: SearchedPart
) -> DatasetScore:
    """Exact match by the document ("loyalty") and by the world ("fact"), and their mean."""
    both = [
        tuple(
            zip(
                extract.judgement_answer(prediction),
                _of_line(line, extract.judgement_reference, reference),
                strict=True,
            )
        )
        for line, (prediction, reference) in zip(lines, predictions, strict=True)
    ]
    parts = {
        "loyalty score": _exam([pair[0] for pair in both], searched),
        "fact score": _exam([pair[1] for pair in both], searched),
    }
    values = [(exact_match(*loyalty, searched) + exact_match(*fact, searched)) / 2 for loyalty, fact in both]
    return _mean_of_parts(parts, values)


def _mean_of_parts(parts: Mapping[str, DatasetScore], values: Sequence[float]) -> DatasetScore:
    """The mean of the parts' scores; its standard error and interval come from the records' `values`, in [0, 1]."""
    score = summarise(values, _mean([part.metrics["exact_match"] for part in parts.values()]) / 100)
    metrics = {**{name: part.metrics for name, part in parts.items()}, "LEval_score": score.score}
    return DatasetScore(score, metrics, {name: part.score for name, part in parts.items()})


def _metrics(named: Mapping[str, float | None], pairs: Sequence[Pair], score: Score) -> DatasetScore:
    metrics = {
        **{name: None if value is None else round(value, 4) for name, value in named.items()},
        "num_predicted": len(pairs),
        "mean_prediction_length_characters": round(_mean([len(prediction) for prediction, _ in pairs]), 4),
        "LEval_score": score.score,
    }
    return DatasetScore(score, metrics)


def _geometric_mean(means: Tensor) -> Tensor:
    return means.prod(dim=-1) ** (1 / means.shape[-1])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
