"""L-Eval's exact match, which despite its name also gives quarter marks and accepts an answer within a sentence.

Its scorer looked for an answer in words in the prediction's first line alone until October 2023 (Evaluation/em.py
before 2023-10-09), and looks for it in all of the prediction since.
"""

from __future__ import annotations

from typing import Literal

from tasks.metrics.normalize import normalize_english

SearchedPart = Literal["whole", "first_line"]
"""Where an answer in words is looked for: as L-Eval's scorer does, or as it did before 2023-10-09."""


def exact_match(prediction: str, answer: str, searched: SearchedPart = "whole") -> float:
    """1, 0.25 or 0.

    Option letters (an answer of A to D only): 1 for the same letters, 0.25 for some of them and no other.
    Numbers: 1 where both read as the same number. Any other text: 1 where the prediction holds the answer, with case
    and spaces aside; with `searched` "first_line", its first line of more than one character.
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
        if searched == "first_line":
            prediction = next((line for line in prediction.split("\n") if len(line) > 1), prediction)
        return float(_squeeze(answer) in _squeeze(prediction))


def _squeeze(text: str) -> str:
    return text.lower().replace(" ", "")
