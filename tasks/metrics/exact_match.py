"""L-Eval's exact match, which despite its name also gives quarter marks and accepts an answer within a sentence."""

from __future__ import annotations

from tasks.metrics.normalize import normalize_english


def exact_match(prediction: str, answer: str) -> float:
    """1, 0.25 or 0.

    Option letters (an answer of A to D only): 1 for the same letters, 0.25 for some of them and no other.
    Numbers: 1 where both read as the same number. Any other text: 1 where the prediction's first line of more than
    one character holds the answer, with case and spaces aside.
    """
    options = normalize_english(answer, lowercase=False)
    if set(options) <= set("ABCD"):
        chosen = normalize_english(prediction, lowercase=False)
        if chosen == options:
            return 1.0
        return 0.25 if set(chosen) <= set(options) else 0.0
    try:
        return float(float(prediction) == float(answer))
    except ValueError:
        line = next((line for line in prediction.split("\n") if len(line) > 1), prediction)
        return float(_squeeze(answer) in _squeeze(line))


def _squeeze(text: str) -> str:
    return text.lower().replace(" ", "")
