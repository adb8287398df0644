import pytest

from benchmarks import prefixes


def test_it_times_questions_and_compares_their_texts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefixes, "NEW_TOKENS", 3)
    prefixes.main(["--tokens", "620", "--questions", "2"])
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("2 questions on 620 tokens, 3 new tokens each: whole ")
    assert said[1].endswith("times as fast; texts equal")
