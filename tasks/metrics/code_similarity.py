"""Edit similarity of one line of code, as LongBench scores lcc and repobench-p.

The published scores are percentages of `fuzzywuzzy` on Python's difflib. That package changes its arithmetic when
python-Levenshtein happens to be installed; this file uses difflib always.
"""

from __future__ import annotations

from difflib import SequenceMatcher


def code_similarity(prediction: str, answer: str) -> float:
    """Similarity in [0, 1], in steps of 0.01, of the answer and the first line of code in the prediction."""
    line = first_code_line(prediction)
    if line == answer:
        return 1.0
    return round(100 * SequenceMatcher(None, line, answer).ratio()) / 100


def first_code_line(prediction: str) -> str:
    """The first line that holds no backtick, hash or double slash, after leading newlines; "" where none does."""
    for line in prediction.lstrip("\n").split("\n"):
        if not any(mark in line for mark in ("`", "#", "//")):
            return line
    return ""
