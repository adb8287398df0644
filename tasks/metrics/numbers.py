"""Scores of an answer that is a number, as LongBench scores counting and passage retrieval."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\d+")
_PASSAGE = re.compile(r"(?:Paragraph |段落)(\d+)")


def count_score(prediction: str, answer: str) -> float:
    """The share of the numbers in the prediction that are the answer; 0 where it has none."""
    numbers = _NUMBER.findall(prediction)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def retrieval_score(prediction: str, answer: str) -> float:
    """`count_score` for the number in an answer like "Paragraph 7" or "段落7". Raises `ValueError` if it has none."""
    passage = _PASSAGE.search(answer)
    if passage is None:
        raise ValueError(f'answer {answer!r} must name a passage as "Paragraph 7" or "段落7" does')
    return count_score(prediction, passage[1])
