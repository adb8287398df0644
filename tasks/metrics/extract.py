"""From a model's sentence to the answer in it, by L-Eval's rules for its closed-ended tasks.

The rules guess: a multiple-choice answer without a letter counts as "A", as in the published scores.
"""

from __future__ import annotations

import re
from itertools import takewhile

NO_ANSWER = "None"
ERROR = "<error>"
_LETTERS = "ABCD"
_MARKED_LETTER = re.compile(r"[A-Z](?=[\s.)])")
_STATED_ANSWER = re.compile(r"The answer is (\S+)")
_CODE_FILLERS = ("will be", "of the code", "is", "would be", "the value of", "the result of", "printed")


def single_option(prediction: str) -> str:
    """The option letter of an answer to a question with one right option."""
    if not prediction.strip():
        return NO_ANSWER
    if prediction in _LETTERS:
        return prediction
    return next((letter for letter in prediction if letter in _LETTERS), "A")


def several_options(prediction: str) -> str:
    """The option letters, sorted, of an answer to a question that may have several right options."""
    if not prediction.strip():
        return NO_ANSWER
    if prediction in _LETTERS:
        return prediction
    leading = _leading_letters(prediction)
    if len(leading) > 1:
        return "".join(sorted(set(leading)))
    rest = prediction[len(leading) :].split("Question")[0]
    marked = set(leading) | (set(_MARKED_LETTER.findall(rest)) & set(_LETTERS))
    if marked:
        return "".join(sorted(marked))
    start = next((i for i, letter in enumerate(rest) if letter in _LETTERS), len(rest))
    return _leading_letters(rest[start:]) or "A"


def reference_options(reference: str) -> str:
    """The option letters of a reference answer such as "(B) Their subconscious knew …".

    Raises `ValueError` where there is no reference at all.
    """
    words = reference.split()
    if not words:
        raise ValueError(f"reference {reference!r} must begin with the letters of the right options")
    return "".join(letter for letter in words[0] if letter in _LETTERS) or "A"


def math_answer(text: str) -> str:
    """The whole-number part of a worked answer: of the word after "The answer is", else of the last with a digit
    in the first paragraph; "" where there is none."""
    stated = _STATED_ANSWER.search(text)
    if stated:
        word = stated[1]
    else:
        words = text.split("\n\n")[0].split(" ")
        word = next((word for word in reversed(words) if any(map(str.isdigit, word))), "")
    return "".join(filter(str.isdigit, word.split(".")[0]))


def code_reference(text: str) -> str:
    """A program's output with spaces collapsed and without commas, quotes, backslashes and ".0"."""
    text = re.sub(r"\s+", " ", text)
    for old, new in (
        (",", ""),
        ("'", ""),
        ("\\", ""),
        (".0", ""),
        ("] [", "]["),
        ("[ [", "[["),
        ("] ]", "]]"),
    ):
        text = text.replace(old, new)
    return text


def code_answer(prediction: str, reference: str) -> str:
    """The words of a prediction where a program's output should be.

    Three words more than the reference has: after the last "the final output", else at the end of the text.
    """
    wanted = len(reference.split()) + 3
    text = code_reference(prediction)
    for filler in _CODE_FILLERS:
        text = text.replace(filler, "")
    if "the final output" in text:
        words = re.split(r"\s+", text.split("the final output")[-1])[:wanted]
    else:
        words = re.split(r"\s+", text)[-wanted:]
    return " ".join(words)


def judgement_reference(reference: str) -> tuple[str, str]:
    """The two answers of "True [fact: False]", lower-case. Raises `ValueError` where the second is missing."""
    loyalty, mark, fact = reference.lower().partition("[fact:")
    if not mark:
        raise ValueError(f'reference {reference!r} must hold two answers, as "True [fact: False]" does')
    return loyalty.strip(), _without_bracket(fact)


def judgement_answer(prediction: str) -> tuple[str, str]:
    """ "true", "false" or `ERROR` by the document and by the world, from "… [fact: …]"."""
    loyalty, _, fact = prediction.lower().partition("[fact:")
    return _first_verdict(loyalty), _first_verdict(_without_bracket(fact))


def _leading_letters(text: str) -> str:
    return "".join(takewhile(lambda letter: letter in _LETTERS, text))


def _without_bracket(fact: str) -> str:
    return fact.split("[fact:")[0][:-1].strip()


def _first_verdict(text: str) -> str:
    for word in text.split():
        if "true" in word:
            return "true"
        if "false" in word:
            return "false"
    return ERROR
