"""From a user's message to the token ids that an instruction-tuned model expects.

Llama-2's chat models get LongBench's official form, `[INST]message[/INST]` without spaces, where the template in
their tokenizer would add some. Every other model gets the template of its tokenizer, and a model without one gets
the text as it is. There is no system prompt unless one is given (a template may still have its own).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from tasks import template_trial
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ChatMode = Literal["auto", "none"]
Message = Mapping[str, str]


def has_llama2_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's template is Llama-2's: `[INST]` with `<<SYS>>`, which no later family uses."""
    template = tokenizer.chat_template
    return isinstance(template, str) and "[INST]" in template and "<<SYS>>" in template


def chat_ids(
    tokenizer: PreTrainedTokenizerBase,
    message: str | Sequence[Message],
    *,
    mode: ChatMode = "auto",
    system_prompt: str | None = None,
    answer_prefix: str = "",
) -> list[int]:
    """Token ids of a chat prompt that ends where the model is to answer.

    `message` is the user's text, or several turns as `{"role", "content"}`. `answer_prefix` is the beginning of the
    answer, put into the model's mouth. `mode` "none" skips every template: the turns are joined by newlines.
    Raises `UserError` for a template that does not come to an end.
    """
    turns: list[Message] = [{"role": "user", "content": message}] if isinstance(message, str) else list(message)
    if mode == "none" or not tokenizer.chat_template:
        parts = ([system_prompt] if system_prompt else []) + [turn["content"] for turn in turns]
        return list(tokenizer("\n".join(parts) + answer_prefix)["input_ids"])
    if has_llama2_template(tokenizer):
        return list(tokenizer(_llama2_text(tokenizer, turns, system_prompt) + answer_prefix)["input_ids"])
    if system_prompt:
        turns = [{"role": "system", "content": system_prompt}, *turns]
    _check_template(tokenizer, turns)
    text = str(
        tokenizer.apply_chat_template([dict(turn) for turn in turns], tokenize=False, add_generation_prompt=True)
    )
    # The template writes the special tokens itself.
    return list(tokenizer(text + answer_prefix, add_special_tokens=False)["input_ids"])


def rehearse(tokenizer: PreTrainedTokenizerBase, characters: int, messages: int) -> None:
    """Try the template now on conversations of up to so many characters and messages: `chat_ids` then need not.

    Raises UserError for a template that does not come to an end.
    """
    if tokenizer.chat_template and not has_llama2_template(tokenizer):
        opening = {"role": "user", "content": "a" * (characters // template_trial.TIMES)}
        _check_template(tokenizer, [opening], ahead=messages)


def _check_template(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], ahead: int | None = None) -> None:
    if (why := template_trial.complaint_of(tokenizer, turns, ahead=ahead)) is not None:
        raise UserError(f"the model's chat template {why}; chat = 'none' leaves it out")


def _llama2_text(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], system_prompt: str | None) -> str:
    """Turns in Llama-2's form. The first start token is left to the tokenizer."""
    text = ""
    system = f"<<SYS>>\n{system_prompt}\n<</SYS>>\n\n" if system_prompt else ""
    for turn in turns:
        if turn["role"] == "user":
            start = str(tokenizer.bos_token) if text else ""
            text += f"{start}[INST]{system}{turn['content']}[/INST]"
            system = ""
        else:
            text += f" {turn['content']} {tokenizer.eos_token}"
    return text
