from pathlib import Path

from models.DPI.methods import METHODS
from tasks.pictures import style
from tests.tasks.pictures.experiments import experiment


def test_one_colour_and_marker_per_method() -> None:
    styles = [style.style_of(method) for method in METHODS]
    for looks in zip(*((look.label, look.colour, look.marker) for look in styles), strict=True):
        assert len(set(looks)) == len(METHODS)
    assert style.style_of("repro_yarn") == style.Style("YaRN", "#CC79A7", "P")
    assert style.style_of(None).colour not in {look.colour for look in styles}
    assert style.style_of("other") == style.style_of(None)


def test_experiments_go_by_their_methods_and_what_they_differ_in() -> None:
    dpi, other = experiment("a", "dpi", {}), experiment("b", "repro_se", {}, params={"group_size": 3})
    assert style.labels_of([dpi, other]) == ["GALI", "SelfExtend"], "parameters of one method alone say nothing"
    far = experiment("c", "dpi", {}, target=32768, status="limited")
    assert style.labels_of([dpi, far]) == ["GALI, to 16,384", "GALI, to 32,768 (limited)"]
    assert style.labels_of([dpi, far], ("window",)) == ["GALI, a", "GALI, c (limited)"]
    small = experiment("d", "dpi", {}, window=512, model="other/tiny/")
    assert style.labels_of([dpi, small]) == ["GALI, model, W = 4,096", "GALI, tiny, W = 512"]
    ours = [experiment(name, "dpi", {}, params={"chunk_coe": coe, "same": 1}) for name, coe in (("e", 1), ("f", 3000))]
    assert style.labels_of([*ours, other]) == ["GALI, chunk_coe 1", "GALI, chunk_coe 3000", "SelfExtend"]
    written = experiment("w", "dpi", {}, params={"chunk_coe": 1, "appro_attn": True, "scale_std": 1})
    theirs = experiment("v", "dpi", {}, params={"noise_type": "gaussian"})
    assert style.labels_of([written, theirs]) == [
        "GALI, chunk_coe 1, noise_type no",
        "GALI, chunk_coe 3000, noise_type gaussian",
    ], "defaults that are written down are no difference"
    twice = [ours[0], experiment("g", "dpi", {}, params=dict(ours[0].params)), ours[1]]
    assert style.labels_of(twice) == ["GALI, chunk_coe 1, e", "GALI, chunk_coe 1, g", "GALI, chunk_coe 3000"]
    assert style.labels_of([experiment("h", None, {}), experiment("i", "foreign", {})]) == ["h", "i"]
    assert style.labels_of([]) == []


def test_marks_of_one_method_are_filled_in_turn() -> None:
    fills = style.fills_of([experiment("x", method, {}) for method in ("dpi", "dpi", "ntk", "dpi")])
    assert fills[0] == fills[2]
    assert len({repr(fill) for fill in fills}) == 3


def test_a_caption_names_model_window_target_and_device() -> None:
    one = experiment("a", "dpi", {}, model="some/SmolLM2", device="NVIDIA H100")
    assert style.caption_of([one, one], "Lines: x") == (
        "SmolLM2; W = 4,096; target 16,384 tokens; NVIDIA H100. Lines: x."
    )
    far = experiment("b", "dpi", {}, window=512, target=32768)
    near = experiment("d", "dpi", {}, window=1024)
    assert "; W = 512, 1,024 and 4,096; " in style.caption_of([far, near, one])
    assert style.caption_of([one, far], "") == (
        "SmolLM2, model; W = 512 and 4,096; target 16,384 and 32,768 tokens; NVIDIA H100."
    )
    assert (
        style.caption_of([experiment("c", None, {}, window=None, device="CPU")]) == "model; target 16,384 tokens; CPU."
    )


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
