import math

import pytest

from tasks.metrics.bootstrap import bootstrap_stderr
from tasks.metrics.summary import average, proportion, summarise
from tasks.results import Score
from tests.tasks.fakes import interval_of_marks


def test_marks_in_percent() -> None:
    marks = [0.0, 0.5, 1.0]
    stderr = bootstrap_stderr(marks)
    assert stderr is not None
    wanted = Score(50.0, pytest.approx(100 * stderr, abs=1e-4), 3, interval_of_marks(marks))
    assert summarise(marks) == wanted
    assert summarise(marks, 0.4).score == 40.0, "a score that is another mean than that of the marks"
    assert summarise([0.0, 1.0, 1.0, 0.5]).score == 62.5
    assert summarise([1 / 3]) == Score(33.3333, None, 1, interval_of_marks([1 / 3]))
    assert summarise([]) == Score(None, None, 0)


def test_proportion_of_trials() -> None:
    assert proportion([1.0, 0.0, 0.0, 0.0]) == Score(
        0.25, pytest.approx(math.sqrt(0.25 * 0.75 / 4)), 4, interval_of_marks([1.0, 0.0, 0.0, 0.0], 1)
    )
    assert proportion([1.0, 1.0]) == Score(1.0, 0.0, 2, interval_of_marks([1.0, 1.0], 1))
    assert proportion([1.0]) == Score(1.0, None, 1, interval_of_marks([1.0], 1))
    assert proportion([]) == Score(None, None, 0)


def test_average_over_data_sets() -> None:
    assert average([Score(10.0, 3.0, 9), Score(20.0, 4.0, 2)]) == Score(15.0, 2.5, 2)
    assert average([Score(10.0, 3.0, 9), Score(20.0, None, 1)]) == Score(15.0, None, 2)
    assert average([]) == Score(None, None, 0)
