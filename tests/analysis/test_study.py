"""What is measured on which model: lengths beyond the window, texts that are long enough, methods that reach."""

import pytest
import torch

from analysis.study import Subject, caption, study_of
from models.DPI.methods import build_method, methods_of_the_paper


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(study_of("tiny"))


def test_a_short_study_still_leaves_the_window() -> None:
    for model in ("tiny", "smollm2-135m"):
        for short in (False, True):
            study = study_of(model, short)
            assert study.window < study.maps <= study.longest
            assert max(study.needles) < study.longest


@pytest.mark.parametrize("target", [512, 700, 4096])
def test_all_methods_reach_the_target(target: int) -> None:
    methods = study_of("tiny").methods(target)
    assert list(methods) == list(methods_of_the_paper())
    for name, params in methods.items():
        build_method(name, params, 512, target)


def test_a_caption_names_model_window_tokens_device_and_texts(subject: Subject) -> None:
    said = caption("3 texts of `pg19`", (subject, 1024), (subject, 512))
    assert said == "tiny; W = 512; 1,024 tokens; CPU. tiny; W = 512; 512 tokens; CPU. Read: 3 texts of pg19."
    assert caption("one book") == "Read: one book."


def test_texts_are_cut_where_they_are_long_enough(subject: Subject) -> None:
    texts = ["too short", *(f"{word} " * 400 for word in ("one", "two", "three", "four"))]
    found = subject.tokens(texts, 100)
    assert len(found) == subject.study.texts
    for ids, text in zip(found, texts[1:], strict=False):
        assert torch.equal(ids, subject.tokenizer(text, return_tensors="pt")["input_ids"][:, :100])
    assert subject.long_enough(texts, 100) == [text[:1600] for text in texts[1:4]]
    with pytest.raises(ValueError, match="no text has 100 tokens"):
        subject.tokens(["too short"], 100)
