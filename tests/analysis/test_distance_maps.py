"""Maps of all methods: each within its facts, one panel for each, files that repeat."""

from pathlib import Path

import pytest

from analysis.distance_maps import distances, draw_all, facts, setting
from models.DPI.methods import METHODS
from tools.draw_methods import draw_methods

WINDOW, TARGET = 256, 512


@pytest.mark.parametrize("name", METHODS)
def test_a_map_shows_what_its_facts_say(name: str) -> None:
    method, params, length = setting(name, WINDOW, TARGET)
    assert params == METHODS[name].params_for(WINDOW, TARGET)
    assert length <= TARGET
    assert length == TARGET or name == "string"
    seen = distances(method, WINDOW, length, cells=length)
    said = facts(method, seen, WINDOW)
    shown = float(said.split()[2])
    largest = max(value for value in seen.distance.flatten().tolist() if value == value)
    assert shown == pytest.approx(largest / WINDOW, abs=0.006)
    assert shown <= 1 or name in ("repro_original", "dpe")
    assert said.endswith("not causal") != method.is_causal()


def test_every_method_has_a_panel_with_its_name() -> None:
    figure = draw_all(WINDOW, TARGET, columns=4)
    panels = [axis for axis in figure.axes if axis.images and axis.texts]
    assert [axis.texts[0].get_text() for axis in panels] == [method.label for method in METHODS.values()]
    titles = {axis.texts[0].get_text(): axis.get_title() for axis in panels}
    assert "reaches 0.48 thousand tokens" in titles["STRING"]
    assert "group_size = 3, window_size = 128" in titles["SelfExtend"]
    assert "up to 2.00 W, 1 band, causal" in titles["original"]


def test_pictures_repeat_and_those_of_methods_that_are_gone_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.draw_methods.METHODS", {name: METHODS[name] for name in ("dpi", "string")})
    (tmp_path / "old.png").write_bytes(b"")
    draw_methods(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["dpi.png", "string.png"]
    draw_methods(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
