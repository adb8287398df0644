"""F1 between the word bags of a prediction and an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tasks.metrics.chinese import segment
from tasks.metrics.normalize import normalize_chinese, normalize_english


def token_f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """F1 of two bags of words, in [0, 1]; 0 where they share none."""
    shared = sum((Counter(prediction) & Counter(answer)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(answer)
    return 2 * precision * recall / (precision + recall)


def qa_f1(prediction: str, answer: str) -> float:
    """F1 of the normalised English words (SQuAD; LongBench's and L-Eval's question answering)."""
    return token_f1(normalize_english(prediction).split(), normalize_english(answer).split())


def qa_f1_chinese(prediction: str, answer: str) -> float:
    """F1 of the normalised Chinese words (LongBench)."""
    return token_f1(_chinese_words(prediction), _chinese_words(answer))


def _chinese_words(text: str) -> list[str]:
    return [word for word in map(normalize_chinese, segment(text)) if word]
