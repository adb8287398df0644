import math

import pytest
import torch

from tasks.metrics.bootstrap import bootstrap_stderr


def test_near_the_textbooks_standard_error_of_a_mean() -> None:
    values = [float(i % 7) for i in range(203)]
    wanted = torch.tensor(values).std(correction=0).item() / math.sqrt(len(values))
    assert bootstrap_stderr(values) == pytest.approx(wanted, rel=0.1)


def test_the_same_in_every_run_and_none_for_one_record() -> None:
    assert bootstrap_stderr([0.0, 1.0, 0.5]) == bootstrap_stderr([0.0, 1.0, 0.5])
    assert bootstrap_stderr([1.0]) is None
    assert bootstrap_stderr([2.0, 2.0, 2.0]) == 0.0


def test_a_statistic_sees_the_means_of_each_resample() -> None:
    rows = [(float(i), 2.0 * i) for i in range(30)]
    alone = bootstrap_stderr([row[0] for row in rows])
    assert alone is not None
    assert bootstrap_stderr(rows, lambda means: means[:, 1]) == pytest.approx(2 * alone)
