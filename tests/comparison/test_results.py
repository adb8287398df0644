"""What is reported of scores: halves, chosen settings, the baseline, differences."""

import math
from pathlib import Path

import pytest

from comparison import storage
from comparison.frontier import Point
from comparison.results import load
from pipeline.files import write_json
from tasks.errors import UserError
from tests.comparison.made import comparison, item, measured


def test_retrieval_is_the_mean_of_the_groups(tmp_path: Path) -> None:
    one = measured("dpi", [3.0, 4.0], [1, 0], [1, 1], [0.25, 0.5])
    found = comparison(tmp_path, [one])
    assert found.point(one, found.items) == Point(3.5, pytest.approx((0.5 + 1 + 0.375) / 3))


def test_one_half_chooses_and_the_other_reports(tmp_path: Path) -> None:
    """On item 0, the half that chooses, window_size 1 is best; on item 1 it is the worst."""
    default = measured("rerope", [3.0, 3.0], [0, 1], [0, 1], [0, 0])
    lucky = measured("rerope", [1.0, 9.0], [1, 0], [1, 0], [1, 0], window_size=1.0)
    never = measured("rerope", [5.0, 1.0], [0, 1], [0, 1], [0, 1], window_size=2.0)
    gali = measured("dpi", [2.0, 2.0], [1, 1], [0, 1], [0, 0])
    found = comparison(tmp_path, [gali, default, lucky, never], tune=True)
    assert set(found.chosen()["rerope"].values()) == {lucky.setting.id}
    assert found.reported() == [gali.setting.id, default.setting.id, lucky.setting.id]
    assert set(found.recommendations().values()) == {lucky.setting.id}
    points = dict(found.points(found.half(chooses=False)))
    assert points[lucky.setting.id] == Point(9.0, 0.0), "what is reported is of the other half"
    assert found.baseline() == gali.setting.id


def test_without_tuning_all_items_choose_and_report(tmp_path: Path) -> None:
    gali = measured("dpi", [2.0, 2.0], [1, 1], [0, 1], [0, 0])
    other = measured("pi", [1.0, 1.0], [0, 0], [0, 0], [0, 0])
    found = comparison(tmp_path, [gali, other])
    assert found.half(chooses=False) == found.items
    assert found.recommendations()["lowest loss"] == other.setting.id
    assert found.recommendations()["best retrieval"] == gali.setting.id


def test_a_setting_without_all_its_scores_is_not_recommended(tmp_path: Path) -> None:
    gali = measured("dpi", [2.0, 2.0], [1, 1], [0, 1], [0, 0])
    cut = measured("pi", [1.0], [1, 1], [1, 1], [1, 1])
    found = comparison(tmp_path, [gali, cut])
    assert set(found.recommendations().values()) == {gali.setting.id}
    assert [key for key, _ in found.points(found.items)] == [gali.setting.id]
    assert comparison(tmp_path, [cut]).recommendations() == {}


def test_differences_are_of_the_items_that_both_have(tmp_path: Path) -> None:
    gali = measured("dpi", [2.0, 2.5], [1, 1], [0, 1], [0, 0])
    cut = measured("pi", [2.25], [0, 1], [0, 1], [0, 1])
    loss, retrieval = comparison(tmp_path, [gali, cut]).differences(cut, gali)
    assert loss is not None
    assert retrieval is not None
    assert (loss.score, loss.interval) == (0.25, None)
    assert retrieval.score == pytest.approx((-0.5 + 0.0 + 0.5) / 3)
    assert retrieval.interval is not None
    assert all(map(math.isfinite, retrieval.interval))


def test_lines_of_another_program_are_named(tmp_path: Path) -> None:
    one = measured("dpi", [2.0], [1], [1], [1])
    storage.write_settings(tmp_path, [one.setting])
    storage.write_items(tmp_path, [item("loss", 0)])
    write_json(tmp_path / storage.REQUEST_FILE, {})
    (tmp_path / "scores.jsonl").write_text('{"id": "a", "pred": "b"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"scores.jsonl' line 1 has no 'setting'; compare.py did not write it"):
        load(tmp_path)
    with pytest.raises(UserError, match="holds no comparison"):
        load(tmp_path / "none")


def test_what_is_recommended_of_all_is_reported(tmp_path: Path) -> None:
    """The balance of all methods is a setting that its own method's rules pass over, as their frontier is shorter."""
    points = {1.0: (0.0, 0.0), 2.0: (0.1, 0.63), 3.0: (0.4, 0.855), 4.0: (1.0, 0.9)}
    own = [
        measured("rerope", [5 + loss] * 2, [mark] * 2, [mark] * 2, [mark] * 2, window_size=number)
        for number, (loss, mark) in points.items()
    ]
    other = measured("dpi", [8.0] * 2, [0.945] * 2, [0.945] * 2, [0.945] * 2)
    found = comparison(tmp_path, [other, *own], tune=True)
    balanced = found.recommendations()["balanced"]
    assert balanced == own[2].setting.id
    assert balanced not in found.chosen()["rerope"].values()
    assert balanced in found.reported()
