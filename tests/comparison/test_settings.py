import pytest

from comparison.settings import Setting, default_of, plan
from models.DPI.methods import METHODS, Method, build_method

CASES = [(512, 4096), (8192, 16384), (8192, 32768), (4096, 5001), (97, 1301), (4096, 131072)]


def anything(method: Method, window: int) -> None:
    return


@pytest.mark.parametrize(("window", "target"), CASES)
def test_every_method_is_planned_or_refused_by_name(window: int, target: int) -> None:
    found, refused = plan(list(METHODS), window, target, tune=False, check=anything)
    assert [one.default for one in found] == [True] * len(found)
    names = {one.method for one in found} | {m.name for m in METHODS.values() if m.label in {r.label for r in refused}}
    assert names == set(METHODS)
    for one in refused:
        assert one.reason.count("\n") == 0
        assert str(target) in one.reason or "must be" in one.reason


def test_string_beyond_two_windows_is_refused_with_its_reason() -> None:
    found, refused = plan(["string", "dpi"], 512, 4096, tune=False, check=anything)
    assert [one.method for one in found] == ["dpi"]
    [one] = refused
    assert one.label == "STRING"
    assert "reaches 960 tokens from a window of 512, less than the target of 4096" in one.reason


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("window", "target"), CASES)
def test_grids_are_small_hold_the_default_and_reach(name: str, window: int, target: int) -> None:
    method = METHODS[name]
    grid = method.tuning_grid(window, target)
    assert method.params_for(window, target) in grid
    assert 1 <= len(grid) <= 4
    assert method.tuning_windows(window)[0] == window
    if name == "string":  # whose reach no parameter extends beyond two windows
        return
    for smaller in method.tuning_windows(window):
        for params in method.tuning_grid(smaller, target):
            build_method(name, params, smaller, target)


def test_labels_and_ids_tell_settings_apart() -> None:
    found, _ = plan(list(METHODS), 8192, 16384, tune=True, check=anything)
    assert len({one.label for one in found}) == len({one.id for one in found}) == len(found)
    labels = [one.label for one in found if one.method == "dpi"]
    assert labels[0] == "GALI, W 8192, chunk_coe 1, local_window 2048"
    assert "GALI, W 4096, chunk_coe 1, local_window 2048" in labels
    assert [one.label for one in found if one.method == "repro_original"] == ["original"]


def test_what_a_model_cannot_run_is_refused() -> None:
    def no_yarn(method: Method, window: int) -> None:
        if method.name == "repro_yarn":
            raise ValueError("its frequencies are no powers of a base")

    found, refused = plan(["repro_yarn", "dpi"], 512, 4096, tune=True, check=no_yarn)
    assert {one.method for one in found} == {"dpi"}
    assert [(one.label, one.reason) for one in refused] == [("YaRN", "its frequencies are no powers of a base")]


def test_a_default_that_cannot_run_gives_way_to_the_first_that_can() -> None:
    first = Setting("dpe", {"a": 1}, 512, "x")
    assert default_of([first, Setting("dpe", {"a": 2}, 512, "y")], "dpe") == first
    assert default_of([first], "pi") is None
