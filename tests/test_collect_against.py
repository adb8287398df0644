"""`collect_results.py --against`: the comparison on the terminal and on the page, and its mistakes."""

from pathlib import Path

import pytest

import collect_results
from pipeline.scoring import score_experiment
from tasks.errors import UserError
from tests.pipeline.scored import LONGBENCH
from tests.pipeline.test_paired import answers, predicted


@pytest.fixture
def results(tmp_path: Path) -> Path:
    root = tmp_path / LONGBENCH.folder
    root.mkdir(parents=True)
    for name, marks in (("good", [1, 1, 1, 0, 1]), ("base", [0, 1, 0, 0, 1])):
        score_experiment(predicted(root, name, {"hotpotqa": answers(marks)}), LONGBENCH)
    return tmp_path


def collect(results: Path, *arguments: str) -> int:
    return collect_results.main(["--task", "longbench", "--results", str(results), *arguments])


def test_experiments_are_compared_with_one_of_them(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect(results, "--against", "base") == 0
    out = capsys.readouterr().out
    assert "lb.html" in out
    [row] = [line.split() for line in out.splitlines() if line.startswith("good ")]
    assert row[1:3] == ["hotpotqa", "40.00"]
    page = (results / LONGBENCH.folder / "lb.html").read_text()
    assert "Differences to base" in page
    assert "+40.00" in page


def test_one_that_cannot_be_compared_leaves_the_others_theirs(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apart = predicted(results / LONGBENCH.folder, "apart", {"qasper": answers([1, 0])})
    score_experiment(apart, LONGBENCH)
    assert collect(results, "--against", "base") == 3
    said = capsys.readouterr()
    assert "no predicted record in common" in said.err
    assert "40.00" in said.out


@pytest.mark.parametrize(
    ("name", "said"), [("all", "--against names one experiment"), ("bose", "does not exist.*'base'")]
)
def test_a_baseline_must_be_one_experiment(results: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        collect(results, "--against", name)
