"""ROUGE, in the two forms that the benchmarks publish scores in.

LongBench takes the F-measure of the summary-level ROUGE-L of the package `rouge` 1.0.1; L-Eval takes ROUGE-1, -2 and
-L of the package `rouge-score` 0.1.2 without stemming. They differ in tokenisation, sentence splitting and counting.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence

from tasks.metrics.chinese import segment
from tasks.metrics.lcs import lcs_indices, lcs_length

_WORD = re.compile(r"[a-z0-9]+")


def rouge_l(prediction: str, answer: str) -> float:
    """Summary-level ROUGE-L F-measure in [0, 1], as LongBench scores English summaries.

    Sentences end at full stops, words at white space; each distinct word counts once. 0 where a text is empty.
    """
    predicted, expected = _sentences(prediction), _sentences(answer)
    if not predicted or not expected:
        return 0.0
    union = {
        reference[i] for reference in expected for candidate in predicted for i in lcs_indices(reference, candidate)
    }
    precision = len(union) / len({word for sentence in predicted for word in sentence})
    recall = len(union) / len({word for sentence in expected for word in sentence})
    # The small term is the package's guard against a division by zero.
    return 2 * precision * recall / (precision + recall + 1e-8)


def rouge_l_chinese(prediction: str, answer: str) -> float:
    """`rouge_l` of the segmented texts, as LongBench scores Chinese summaries."""
    return rouge_l(" ".join(segment(prediction)), " ".join(segment(answer)))


def rouge_1_2_l(prediction: str, answer: str) -> tuple[float, float, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measures in [0, 1], as L-Eval scores summaries."""
    predicted, expected = _WORD.findall(prediction.lower()), _WORD.findall(answer.lower())
    longest = lcs_length(expected, predicted)
    return (
        _ngram_f(predicted, expected, 1),
        _ngram_f(predicted, expected, 2),
        _f_measure(longest, len(predicted), len(expected)),
    )


def _sentences(text: str) -> list[list[str]]:
    """The words of each sentence. A blank sentence holds one empty word, which counts."""
    return [" ".join(sentence.split()).split(" ") for sentence in text.split(".") if sentence]


def _ngram_f(predicted: Sequence[str], expected: Sequence[str], n: int) -> float:
    left, right = _ngrams(predicted, n), _ngrams(expected, n)
    return _f_measure((left & right).total(), left.total(), right.total())


def _ngrams(words: Sequence[str], n: int) -> Counter[Hashable]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _f_measure(shared: int, predicted: int, expected: int) -> float:
    if not shared:
        return 0.0
    precision, recall = shared / predicted, shared / expected
    return 2 * precision * recall / (precision + recall)
