from typing import Any

import pytest

from tasks.chat import ChatMode, chat_ids
from tests.pipeline.small import word_tokenizer

LLAMA2 = "{% if '<<SYS>>' %}{% endif %}{% for m in messages %} [INST] {{ m.content }} [/INST] {% endfor %}"
CHATML = (
    "<s> {% for m in messages %}{{ m.role }} : {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


class Recorder:
    """A tokenizer that keeps the texts it is given."""

    bos_token, eos_token = "<s>", "</s>"

    def __init__(self, template: str | None) -> None:
        self._real = word_tokenizer()
        self._real.chat_template = self.chat_template = template
        self.special_tokens_map = self._real.special_tokens_map
        self.calls: list[tuple[str, bool]] = []

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        self.calls.append((text, add_special_tokens))
        return {"input_ids": [1, 2]}

    def apply_chat_template(self, *arguments: Any, **options: Any) -> Any:
        return self._real.apply_chat_template(*arguments, **options)


def text_of(template: str | None, *arguments: Any, **options: Any) -> tuple[str, bool]:
    recorder = Recorder(template)
    chat_ids(recorder, *arguments, **options)
    return recorder.calls[0]


def test_llama2_gets_the_official_form_without_spaces() -> None:
    assert text_of(LLAMA2, "Hi") == ("[INST]Hi[/INST]", True)
    assert text_of(LLAMA2, "Hi", system_prompt="Be") == ("[INST]<<SYS>>\nBe\n<</SYS>>\n\nHi[/INST]", True)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert text_of(LLAMA2, turns, answer_prefix=" x") == ("[INST]a[/INST] b </s><s>[INST]c[/INST] x", True)


def test_other_models_get_their_own_template_without_a_second_start_token() -> None:
    assert text_of(CHATML, "Hi") == ("<s> user : Hi </s> assistant :", False)
    assert text_of(CHATML, "Hi", system_prompt="Be")[0] == "<s> system : Be </s> user : Hi </s> assistant :"


@pytest.mark.parametrize(("template", "mode"), [(None, "auto"), (CHATML, "none"), (LLAMA2, "none")])
def test_without_a_template_the_text_is_as_it_is(template: str | None, mode: ChatMode) -> None:
    assert text_of(template, "Hi", mode=mode) == ("Hi", True)
    assert text_of(template, "Hi", mode=mode, system_prompt="Be", answer_prefix=" x") == ("Be\nHi x", True)
