"""docs/reliability.md names tests that are there."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parent / "docs" / "reliability.md"


def test_every_promise_has_a_test_that_exists() -> None:
    rows = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if re.match(r"\| (?!Promise|---)", line)]
    assert len(rows) > 20
    for row in rows:
        named = [(file, test) for file, test in re.findall(r"`([\w/]+\.py)?(?:::(test_\w+))?`", row) if file or test]
        assert named, row
        path = ""
        for file, test in named:
            path = file or path
            text = (TESTS / path).read_text(encoding="utf-8")
            assert not test or f"def {test}(" in text, f"{path}::{test}"
