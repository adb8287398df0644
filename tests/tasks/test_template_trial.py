"""Chat templates that would run for ever, or fill the memory."""

import pytest

from tasks import template_trial
from tasks.chat import chat_ids, rehearse
from tasks.errors import UserError
from tests.tasks.fakes import byte_tokenizer


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered, and nothing takes long."""
    monkeypatch.setattr(template_trial, "_tried", {})
    monkeypatch.setattr(template_trial, "SECONDS", 1)
    monkeypatch.setattr(template_trial, "MEMORY", 1 << 28)


LOOPS = 3 * "{% for a in range(9999) %}" + 3 * "{% endfor %}"
DOUBLING = "{% set s = namespace(t='ab') %}{% for i in range(60) %}{% set s.t = s.t ~ s.t %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{% set x = 9 ** (9 ** 9) %}",
            "does not end within 1 s on messages of 4 characters; chat = 'none' leaves it out",
        ),
        (DOUBLING, "takes more than 0.25 GiB"),
        ("{{ 'x' * 9000000 }}", "makes 9,000,000 characters of messages of 4"),
    ],
)
def test_a_template_without_end_is_one_line(template: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        chat_ids(byte_tokenizer(template), "hi")


def test_each_order_of_roles_is_tried() -> None:
    tokenizer = byte_tokenizer("{% if messages[0]['role'] == 'system' %}" + LOOPS + "{% endif %}")
    assert chat_ids(tokenizer, "hi") == []
    with pytest.raises(UserError, match="does not end within 1 s"):
        chat_ids(tokenizer, "hi", system_prompt="Be short.")


def test_a_template_that_is_slow_on_long_messages_alone() -> None:
    text = "messages[0]['content']"
    tokenizer = byte_tokenizer(f"{{% for a in {text} %}}{{% for b in {text} %}}{{% endfor %}}{{% endfor %}}")
    assert chat_ids(tokenizer, "hi") == []
    with pytest.raises(UserError, match="on messages of 200,000 characters"):
        chat_ids(tokenizer, "x" * 100_000)


def test_only_longer_prompts_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(template_trial, "_try", lambda *asked: sizes.append(asked[-1]))
    tokenizer = byte_tokenizer("{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    for length in (10, 15, 20, 21, 42):
        assert tokenizer.decode(chat_ids(tokenizer, "x" * length)) == "<s>" + "x" * length
    assert sizes == [20, 42]


TALK = [{"role": role, "content": "hi"} for role in ("user", "assistant", "user", "assistant", "user")]


def test_a_conversation_is_tried_with_the_turns_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[list[int]] = []
    monkeypatch.setattr(template_trial, "_try", lambda *asked: counts.append(list(asked[3])))
    tokenizer = byte_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    chat_ids(tokenizer, TALK[:1])
    assert counts == [[1]], "of a single prompt no other is tried"
    chat_ids(tokenizer, TALK[:3])
    chat_ids(tokenizer, TALK)
    assert counts == [[1], [3, 5]]
    rehearse(tokenizer, 1000, 8)
    for length in (1, 3, 5):
        chat_ids(tokenizer, [{**TALK[0], "content": "x" * 900}, *TALK[1:length]])
    assert counts == [[1], [3, 5], [1, 3, 5, 7, 9]]


def test_a_template_that_does_not_end_in_a_later_turn() -> None:
    tokenizer = byte_tokenizer("{% if messages|length == 5 %}" + LOOPS + "{% endif %}{{ messages[0]['content'] }}")
    assert len(chat_ids(tokenizer, "hi")) == 2
    with pytest.raises(UserError, match="does not end within 1 s on messages of 1,000 characters"):
        rehearse(tokenizer, 1000, 8)


def test_an_error_of_a_template_is_its_own() -> None:
    tokenizer = byte_tokenizer("{{ raise_exception('no system role') }}")
    with pytest.raises(Exception, match="no system role"):
        chat_ids(tokenizer, "hi")
