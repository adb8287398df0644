"""Texts of a folder, and those that Python brings along."""

from pathlib import Path

from analysis.texts import long_texts


def test_texts_of_a_folder_and_without_one(tmp_path: Path) -> None:
    for name, text in (("b.txt", "second"), ("a.txt", "first"), ("c.md", "no")):
        (tmp_path / name).write_text(text)
    texts, origin = long_texts(tmp_path)
    assert texts == ["first", "second"]
    assert str(tmp_path) not in origin  # where data lie is nobody's business
    (text,), origin = long_texts(tmp_path / "absent")
    assert len(text) > 200_000
    assert "Python" in origin
    assert "\n*****" not in text
