import pytest

from tasks.metrics import extract


@pytest.mark.parametrize(
    ("prediction", "option"),
    [("B", "B"), ("BC", "BC"), ("(C) because", "C"), ("None of these: D", "D"), ("xyz", "A"), (" \n", "None")],
)
def test_single_option(prediction: str, option: str) -> None:
    assert extract.single_option(prediction) == option


@pytest.mark.parametrize(
    ("prediction", "options"),
    [
        ("AC", "AC"),
        ("CAB D", "ABC"),
        ("BA, not C.", "AB"),
        ("A. one\nC) two\nE. no", "AC"),
        ("C and A.", "AC"),
        ("B. yes Question 2. D.", "B"),
        ("answer=DB, then C", "DB"),
        ("nothing", "A"),
        ("", "None"),
    ],
)
def test_several_options(prediction: str, options: str) -> None:
    assert extract.several_options(prediction) == options


@pytest.mark.parametrize(("reference", "options"), [("(B) Their", "B"), ("ABD", "ABD"), ("x y", "A")])
def test_reference_options(reference: str, options: str) -> None:
    assert extract.reference_options(reference) == options


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = 7. The answer is $1,234.50.", "1234"),
        ("He has 5 cats and 12 dogs now", "12"),
        ("5 cats\n\n12 dogs", "5"),
        ("none", ""),
        ("The answer is nine", ""),
    ],
)
def test_math_answer(text: str, number: str) -> None:
    assert extract.math_answer(text) == number


def test_code_answer_is_after_the_final_output_or_at_the_end() -> None:
    # Three words more than the reference has; the space after the phrase makes an empty one of them.
    after = extract.code_answer("So the final output is [1.0, 2.0]\nas said before by me", "[1 2]")
    assert after == " [1 2] as said"
    assert extract.code_answer("a b c d e [1, 2]", "[1 2]") == "c d e [1 2]"
    assert extract.code_reference("[[ 1.0,  2.0 ] [ '3' ]\\]") == "[[ 1 2 ][ 3 ]]"


def test_judgements() -> None:
    assert extract.judgement_reference("True [fact: False]") == ("true", "false")
    assert extract.judgement_answer("It is True. [fact: That is false.]") == ("true", "false")
    assert extract.judgement_answer("Unsure [fact: ]") == (extract.ERROR, extract.ERROR)
    assert extract.judgement_answer("False") == ("false", extract.ERROR)
    with pytest.raises(ValueError, match="two answers"):
        extract.judgement_reference("True")


@pytest.mark.parametrize(
    "filler", ["will be", "of the code", "is", "would be", "the value of", "the result of", "printed"]
)
def test_code_answer_has_no_filler_words(filler: str) -> None:
    assert extract.code_answer(f"a {filler} 7 8", "7 8") == "a 7 8"
