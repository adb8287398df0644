"""The backward benchmark's arithmetic and plans; the timing itself needs a GPU."""

import pytest
from rich.console import Console

from benchmarks import attention, backward


@pytest.mark.parametrize(("flash", "relative"), [(3.0, "1.50"), (None, "-")])
def test_the_table_gives_speeds_and_how_they_compare(flash: float | None, relative: str) -> None:
    result = backward.Result("a case", 10, 2.0, flash, 4.0, 0.5, work=8e12)
    console = Console(width=160)
    with console.capture() as capture:
        console.print(backward.table_of([result]))
    line = next(line for line in capture.get().splitlines() if "a case" in line)
    cells = [cell.strip() for cell in line.strip("│ ").split("│")]
    assert cells == ["a case", "10", "2.000", "4,000", "2,667" if flash else "-", "2,000", relative, "0.50"]


def test_work_is_five_products_of_what_a_query_sees() -> None:
    case = attention.Case("three queries", "repro_original", {}, 3, 3, 3, ())
    assert backward._work(case) == 5 * 2 * attention.HEADS * attention.HEAD_DIM * (1 + 2 + 3)


@pytest.mark.parametrize("case", backward.cases(), ids=lambda case: f"{case.name} {case.keys}")
def test_cases_are_what_their_names_say(case: attention.Case) -> None:
    (row,) = attention.plan_of(case, attention.rope_of(case)).rows
    assert row.num_queries == row.length == case.keys
    bands = {"GALI chunk-free": 2, "SelfExtend": 2, "ChunkLlama, three bands": 3, "original, one band": 1}
    assert max(len(segment.bands) for segment in row.segments) == bands[case.name]
