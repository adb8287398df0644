from pathlib import Path

from models.DPI.methods import METHODS
from tasks.pictures import style


def test_one_colour_and_marker_per_method() -> None:
    styles = [style.style_of(method) for method in METHODS]
    for looks in zip(*((look.label, look.colour, look.marker) for look in styles), strict=True):
        assert len(set(looks)) == len(METHODS)
    assert style.style_of("repro_yarn") == style.Style("YaRN", "#CC79A7", "P")
    assert style.style_of(None).colour not in {look.colour for look in styles}
    assert style.style_of("other") == style.style_of(None)


def test_windows_of_a_million_tokens_are_written_out() -> None:
    axis = style.new_figure(2, 2).subplots()
    style.mark_window(axis, 1_048_576)
    style.mark_window(axis, 0.5, label="W")
    assert [text.get_text() for text in axis.texts] == ["W = 1,048,576", "W"]


def test_a_figure_is_saved_as_png(tmp_path: Path) -> None:
    figure = style.new_figure(2, 1)
    figure.subplots()
    path = style.save(figure, tmp_path / "x.png")
    assert path.read_bytes().startswith(b"\x89PNG")
