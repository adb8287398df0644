"""Accuracy of a class named in free text, as LongBench scores trec and lsht."""

from __future__ import annotations

from collections.abc import Sequence


def classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """1 / (number of classes that the prediction names) where the answer is among them, else 0.

    A class whose name is part of the answer's name ("Other" in "Other location") is not counted against it.
    """
    named = [name for name in classes if name in prediction]
    i = 0
    while i < len(named):
        if named[i] in answer and named[i] != answer:
            # The official scorer removes from the list that it walks, so the class after a removed one is never
            # looked at. The published scores carry this: i moves on here too.
            del named[i]
        i += 1
    return 1 / len(named) if answer in named else 0.0
