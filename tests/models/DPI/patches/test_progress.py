import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from models.DPI import build_method, install, progress

MakeModel = Callable[..., PreTrainedModel]
PROMPT = torch.arange(1100)[None] % 80 + 10  # without the id of padding


def hooks_of(model: PreTrainedModel) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_a_bar_while_the_prompt_is_read_and_the_same_text(
    make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model: Any = install(make_model(), build_method("dpi", {"chunk_coe": 1, "local_window": 9}), 64)
    expected = model.generate(PROMPT, max_new_tokens=5, do_sample=False)
    seen: list[int] = []
    with progress(model, disable=False):
        model.lm_head.register_forward_hook(lambda *_: seen.append(hooks_of(model)))
        found = model.generate(PROMPT, max_new_tokens=5, do_sample=False)
    assert torch.equal(found, expected)
    assert seen == [1] * 5  # the test's own alone: the bar's are gone before the first token is chosen
    layers = len(model.model.layers)
    said = capsys.readouterr().err
    assert re.search(rf"reading 1,100 tokens: 100%.*{layers}/{layers}", said)


@pytest.mark.parametrize("disable", [True, None])  # None: the test's standard error is no terminal
def test_silent_where_nobody_looks(
    make_model: MakeModel, capsys: pytest.CaptureFixture[str], disable: bool | None
) -> None:
    model = make_model()
    with progress(model, disable=disable), torch.no_grad():
        model(PROMPT)
        assert hooks_of(model) == 0
    assert capsys.readouterr().err == ""


def test_no_bar_for_a_short_prompt(make_model: MakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model()
    with progress(model, disable=False), torch.no_grad():
        model(PROMPT[:, :1023])
    assert capsys.readouterr().err == ""
    assert hooks_of(model) == 0


def test_an_error_leaves_no_hook(make_model: MakeModel) -> None:
    model = make_model()
    with pytest.raises(KeyboardInterrupt), progress(model, disable=False):
        raise KeyboardInterrupt
    assert hooks_of(model) == 0


def test_behind_an_adapter(make_model: MakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    adapted = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    with progress(adapted, disable=False), torch.no_grad():  # type: ignore[arg-type]
        adapted(PROMPT)
    assert "reading 1,100 tokens: 100%" in capsys.readouterr().err
