"""The soak program sees what it is for; the long runs themselves are `python -m tools.soak` and the GPU test here."""

from collections.abc import Sequence

import pytest

from pipeline.engine import ModelEngine
from tasks.base import Generation, Request
from tests.pipeline.small import tiny_model, word_tokenizer
from tools.soak import PERIOD, WARM_UP, Levels, load, run, wave

RECORDS = WARM_UP + 25


def test_lengths_go_up_and_down_and_the_longest_comes_before_memory_is_watched() -> None:
    lengths = [wave(n, 1200) for n in range(500)]
    assert (min(lengths), max(lengths)) == (40, 1200)
    assert max(lengths[:WARM_UP]) == 1200
    assert lengths[0] == lengths[PERIOD] == 40
    assert sorted(lengths[: PERIOD // 2 + 1]) == lengths[: PERIOD // 2 + 1]
    assert lengths[1:PERIOD] == lengths[1:PERIOD][::-1]


def test_growth_is_beyond_the_highest_of_the_first() -> None:
    first = [100] * (WARM_UP - 1) + [200]
    assert Levels([], []).growth([*first, 150, 210, 90]) == pytest.approx(0.05)
    assert Levels([], []).growth([*first, 190]) == pytest.approx(-0.05)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_short_run_is_level(batch_size: int) -> None:
    levels = run(ModelEngine(tiny_model(), word_tokenizer()), RECORDS, 90, batch_size)
    assert len(levels.resident) == RECORDS
    assert levels.growth(levels.resident) < 0.05


def test_a_leak_is_seen() -> None:
    class Leaking(ModelEngine):
        kept: list[bytearray] = []  # noqa: RUF012

        def generate(self, requests: Sequence[Request]) -> list[Generation | FloatingPointError]:
            self.kept.append(bytearray(b"x" * 2**22))
            return super().generate(requests)

    engine = Leaking(tiny_model(), word_tokenizer())
    levels = run(engine, RECORDS, 60)
    assert levels.resident[-1] - levels.resident[WARM_UP] > 20 * 2**22
    assert levels.growth(levels.resident) > 0.05


def test_a_record_that_fails_ends_the_run() -> None:
    class Failing(ModelEngine):
        def generate(self, requests: Sequence[Request]) -> list[Generation | FloatingPointError]:
            raise ValueError("no")

    with pytest.raises(RuntimeError, match="record 0 failed: ValueError: no"):
        run(Failing(tiny_model(), word_tokenizer()), RECORDS, 60)


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [1, 4])
def test_five_hundred_records_on_a_gpu(batch_size: int) -> None:
    levels = run(load("cuda"), 500, 1200, batch_size)
    assert levels.growth(levels.allocated) <= 0.05
    assert levels.growth(levels.resident) <= 0.05
