"""The attention benchmark's arithmetic and plans; the timing itself needs a GPU."""

import pytest
from rich.console import Console

from benchmarks import attention


def _result(gali: float, flash: float | None, cudnn: float | None, beside: tuple[str, ...]) -> attention.Result:
    return attention.Result("a case", 10, 1, 1, gali, flash, cudnn, 2e6, beside)


def test_speed_relative_to_a_kernel_and_to_the_better_of_both() -> None:
    result = _result(2.0, 3.0, 1.0, ("best",))
    assert result.relative("flash") == 1.5
    assert result.relative("cudnn") == 0.5
    assert result.relative("best") == 0.5
    assert _result(2.0, 3.0, None, ()).relative("best") == 1.5
    assert _result(2.0, None, None, ()).relative("best") is None
    assert _result(2.0, None, 1.0, ()).relative("flash") is None


@pytest.mark.parametrize(("flash", "said"), [(3.0, "flash 1.50, cudnn 4.50"), (None, "flash -, cudnn 4.50")])
def test_the_table_gives_speeds_and_how_they_compare(flash: float | None, said: str) -> None:
    console = Console(width=160, record=True, quiet=False)
    with console.capture() as capture:
        console.print(attention.table_of([_result(2.0, flash, 9.0, ("flash", "cudnn"))]))
    line = next(line for line in capture.get().splitlines() if "a case" in line)
    assert line.rstrip("│ ").endswith(f"│ {said}")
    assert "2.000" in line  # milliseconds
    assert not any(word in capture.get() for word in ("target", "met"))


@pytest.mark.parametrize("case", attention.CASES, ids=lambda case: f"{case.name} {case.keys} {case.batch}")
def test_cases_are_what_their_names_say(case: attention.Case) -> None:
    plan = attention.plan_of(case, attention.rope_of(case))
    (row,) = plan.rows
    assert row.num_queries == case.queries
    assert row.length == case.keys
    assert (plan.noise is not None) == ("noise" in case.name)
    if "noise" in case.name:
        assert row.segments[0].bands[0].noise_period == 4  # three keys of four
