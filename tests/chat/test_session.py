"""A conversation: turns over the window, what it keeps of them, loaded texts, and answers that are stopped."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from chat import session
from chat.session import Chat, largest_distance
from models.DPI import build_method, install
from models.DPI.methods import METHODS
from pipeline.prefixes import KeptCache
from tasks import template_trial
from tasks.errors import UserError
from tests.pipeline.small import tiny_model, word_tokenizer

WORDS = "The grass is green . The sky is blue . "


def made(method: str = "dpi", target: int = 512, new: int = 6, **params: Any) -> tuple[Chat, io.StringIO]:
    out = io.StringIO()
    model = install(tiny_model(), build_method(method, params or METHODS[method].params_for(64, target)), 64)
    console = Console(file=out, soft_wrap=True)
    chat = Chat(model, word_tokenizer(), 64, target, name="small", max_new_tokens=new, seed=0, console=console)
    return chat, out


def said(out: io.StringIO) -> str:
    text = out.getvalue()
    out.seek(0)
    out.truncate()
    return text


def answers(chat: Chat) -> list[str]:
    return [turn["content"] for turn in chat._turns[1::2]]


def test_turns_over_the_window_keep_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """From within the window of 64 to beyond it: the answers are those of a chat that reads all anew."""
    chat, out = made()
    plain, _ = made()
    monkeypatch.setattr(plain, "_kept", Forgetful())
    for turn in range(5):
        for each in (chat, plain):
            each.say(WORDS * (2 + turn))
        if turn:
            assert " in the cache; " in said(out)
    assert answers(chat) == answers(plain)
    assert len(answers(chat)) == 5


class Forgetful(KeptCache):
    """Keeps nothing."""

    def keep(self, *args: Any) -> None:
        self.drop()


def test_methods_that_are_not_causal_read_anew_and_say_so() -> None:
    chat, out = made("repro_chunkllama")
    chat.say(WORDS * 8)
    chat.say(WORDS)
    text = said(out)
    assert "not causal: the conversation was read anew" in text
    assert "in the cache" not in text


def test_another_method_drops_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    chat, out = made()
    chat.say(WORDS * 8)
    chat.change("repro_yarn", ["factor=8.0"])
    chat.say(WORDS)
    assert "in the cache" not in said(out)
    assert chat.method == build_method("repro_yarn", {"factor": 8.0})
    chat.change("repro_se", [])
    assert chat.method == build_method("repro_se", METHODS["repro_se"].params_for(64, 512))
    with pytest.raises(UserError, match="reaches 128 tokens"):
        chat.change("repro_yarn", ["factor=2.0"])
    assert chat.method.name == "repro_se"


def test_a_text_stands_before_the_next_message_alone(tmp_path: Path) -> None:
    path = tmp_path / "a b.txt"
    path.write_bytes(b"\xef\xbb\xbf" + WORDS.replace(". ", ".\r\n").encode() * 4)
    chat, out = made()
    chat.load(str(path))
    chat.load(str(path))
    assert said(out).count("loaded 40 tokens") == 2
    chat.say("The sky")
    chat.say("The grass")
    text = WORDS.replace(". ", ".\n") * 4
    assert chat._turns[0]["content"] == f"{text}\n\n{text}\n\nThe sky"
    assert chat._turns[2]["content"] == "The grass"


def test_a_conversation_is_saved_once(tmp_path: Path) -> None:
    chat, out = made()
    chat.say("The sky")
    saved = tmp_path / "c.json"
    chat.save(str(saved))
    assert json.loads(saved.read_text()) == {
        "model": "small", "method": "dpi", "params": chat.method.model_dump(mode="json"), "window": 64, "target": 512,
        "turns": chat._turns,
    }  # fmt: skip
    assert "saved 2 turns" in said(out)
    for name, words in [
        (str(saved), "is there already"),
        (str(tmp_path), "is there already"),
        (str(tmp_path / "absent" / "c.json"), "cannot write .*: No such file"),
        ("a\0b", "cannot write"),
    ]:
        with pytest.raises(UserError, match=words):
            chat.save(name)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk, as Linux has one")
def test_half_a_conversation_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, _ = made()
    stock = Path.open

    def full(self: Path, *args: Any, **kwargs: Any) -> Any:
        stock(self, *args, **kwargs).close()
        return stock(Path("/dev/full"), "w", encoding="utf-8")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        chat.save(str(tmp_path / "c.json"))
    assert not (tmp_path / "c.json").exists()


def test_what_cannot_be_loaded_is_one_line_and_loads_nothing(tmp_path: Path) -> None:
    chat, out = made()
    files = {"binary": b"\x7fELF\xff\xfe\x00", "nul": b"a\0b", "empty": b" \r\n"}
    files |= {"long": 300 * WORDS.encode(), "huge": 100_000 * b"word ", "just": (512 * "sky ").encode()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name, words in [
        (str(tmp_path), "cannot read .*: Is a directory"),
        (str(tmp_path / "absent"), "cannot read .*: No such file"),
        ("a\0b", "cannot read"),
        ("~nobody-of-this-name/x", "cannot read"),
        ("/dev/zero", "is no regular file"),
        (str(tmp_path / "binary"), "is no text in UTF-8"),
        (str(tmp_path / "nul"), "holds NUL characters"),
        (str(tmp_path / "empty"), "is empty"),
        (str(tmp_path / "long"), "has 3,000 tokens, and the target is 512 tokens; load a part of it"),
        (str(tmp_path / "huge"), "has 500,000 characters, and the target is 512 tokens"),
        (str(tmp_path / "just"), "has 512 tokens, and the target is 512 tokens"),
    ]:
        with pytest.raises(UserError, match=words):
            chat.load(name)
    assert said(out) == ""
    chat.say("The sky")
    assert chat._turns[0]["content"] == "The sky"


def test_a_long_text_is_not_tokenised_to_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words of eight megabytes take a tokenizer seconds, and those of 256 minutes."""
    chat, _ = made()
    monkeypatch.setattr(chat, "_tokenizer", None)
    path = tmp_path / "long"
    path.write_text("word " * 1_600_000)
    with pytest.raises(UserError, match="has 8,000,000 characters"):
        chat.load(str(path))


def test_a_new_conversation_has_room_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(WORDS * 9)
    chat, out = made(target=100)
    chat.load(str(tmp_path / "a"))
    chat.say("The sky")
    with pytest.raises(UserError, match="/new forgets it"):
        chat.say(WORDS)
    chat.load(str(tmp_path / "a"))
    chat.forget()
    said(out)
    chat.say(WORDS)
    assert "in the cache" not in said(out)
    assert [turn["content"] for turn in chat._turns[::2]] == [WORDS]


def test_what_is_beyond_the_target_is_refused_and_forgotten() -> None:
    chat, out = made(target=100, new=30)
    with pytest.raises(UserError, match=r"the conversation has 120 tokens, and the target is 100"):
        chat.say(WORDS * 12)
    chat.say(WORDS * 9)
    assert " new 10 at" in said(out), "an answer has the room that is left"
    assert len(chat._turns) == 2


def test_an_answer_that_is_stopped_is_kept_with_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    chat, out = made(new=20)
    chat.say(WORDS * 8)
    stock = chat._write
    pieces: list[str] = []

    def write(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 3:
            raise KeyboardInterrupt
        stock(text)

    monkeypatch.setattr(chat, "_write", write)
    chat.say(WORDS)
    monkeypatch.undo()
    whole, _ = made(new=20)
    whole.say(WORDS * 8)
    whole.say(WORDS)
    assert answers(whole)[1].startswith(answers(chat)[1])
    assert 0 < len(answers(chat)[1]) < len(answers(whole)[1])
    said(out)
    chat.say("The sun")
    assert " in the cache" in said(out), "what all layers hold of the stopped answer"
    monkeypatch.setattr(whole, "_turns", chat._turns[:-2])
    monkeypatch.setattr(whole, "_kept", Forgetful())
    whole.say("The sun")
    assert answers(whole)[-1] == answers(chat)[-1]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("first", [True, False])
def test_reading_that_is_stopped_in_a_layer_leaves_what_was_read_before(
    layer: int, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, out = made()
    plain, _ = made()
    monkeypatch.setattr(plain, "_kept", Forgetful())
    if not first:
        for each in (chat, plain):
            each.say(WORDS * 8)
    stopped = chat._model.model.layers[layer].mlp

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = stopped.register_forward_hook(interrupt)
    said(out)
    chat.say(WORDS * 2)
    assert "stopped before the first token; the message is forgotten" in said(out)
    handle.remove()
    for each in (chat, plain):
        each.say("The sun " * 9)
    assert (" in the cache" in said(out)) is not first
    assert chat._turns == plain._turns


def test_templates_are_tried_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes seconds."""
    tried = []
    monkeypatch.setattr(template_trial, "_tried", {})
    monkeypatch.setattr(template_trial, "_try", lambda *asked: tried.append(asked[-1]))
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] ~ ' ' ~ m['content'] ~ ' ' }}{% endfor %}"
    monkeypatch.setattr(session, "_REHEARSED_MESSAGES", 4)
    model = install(tiny_model(), build_method("dpi", METHODS["dpi"].params_for(64, 512)), 64)
    console = Console(file=io.StringIO())
    chat = Chat(model, tokenizer, 64, 512, name="small", max_new_tokens=4, seed=0, console=console)
    for _ in range(3):
        chat.say("The sky")
    assert tried == [8 * 512]
    for _ in range(6):
        chat.say("The sky")
    assert len(tried) == 3, "a trial has twice the turns and twice the text of what it is for"


def test_a_template_that_refuses_is_one_line() -> None:
    chat, _ = made()
    chat._tokenizer.chat_template = "{{ raise_exception('no such turn') }}"
    with pytest.raises(UserError, match="template refuses the conversation: no such turn"):
        chat.say("The sky")


def test_what_the_model_cannot_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    chat, _ = made()
    chat.say("The sky")

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(chat._model, "generate", broken)
    with pytest.raises(UserError, match=r"^RuntimeError: out of memory$"):
        chat.say("The sun")
    monkeypatch.undo()
    chat.say("The grass")
    assert len(chat._turns) == 4


def test_control_characters_of_a_model_do_not_reach_the_terminal() -> None:
    chat, out = made()
    chat._write("a\x1b[2Jb")
    assert "\x1b" not in said(out)


def test_distances_are_those_of_the_method() -> None:
    for name, params, expected in [
        ("repro_original", {}, 299),
        ("dpi", {"chunk_coe": 1, "local_window": 16}, 63),
        ("repro_se", {"group_size": 6, "window_size": 16}, 63),
    ]:
        model = install(tiny_model(), build_method(name, params), 64)
        assert largest_distance(model, 300) == pytest.approx(expected, abs=1)
