"""What is measured on which model: window, lengths, and every method's parameters for a target.

The embedded model is read up to eight windows long. SmolLM2 was trained on 8,192 tokens; here it is treated as if its
window were 512, so that its own attention beyond that is what a model with a longer window does, and methods can be
compared with it. Any other model keeps its window.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.DPI.dpi import get_model_and_tokenizer
from models.DPI.loading import device_name, window_of
from models.DPI.methods import Rope, build_method, methods_of_the_paper
from models.DPI.methods.original import Original
from models.DPI.patches.Llama import install, uninstall
from models.DPI.patches.rotary import rope_of
from pipeline.model_files import read_model_config
from tasks.pictures.style import short_model

Params = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """Lengths in tokens.

    window: W, which methods are told. maps: of attention maps. longest: of perplexity, needles and sweeps.
    needles: prompt lengths. depths: of needles, of the 16 of the task. texts: how many are averaged.
    """

    model: str
    window: int
    maps: int
    longest: int
    needles: tuple[int, ...]
    depths: int = 8
    texts: int = 3

    @property
    def step(self) -> int:
        """Perplexity is read off every so many tokens."""
        return max(1, self.window // 4)

    def methods(self, target: int) -> dict[str, Params]:
        """The paper's methods with parameters that reach `target`, as each sets them itself; GALI first."""
        return {name: method.params_for(self.window, target) for name, method in methods_of_the_paper().items()}


_STUDIES = {
    "tiny": Study("tiny", 512, 1024, 4096, (500, 1000, 2000, 4000)),
    "smollm2-135m": Study("smollm2-135m", 512, 1536, 2048, (500, 1000, 2000), depths=4, texts=1),
}


def study_of(model: str, short: bool = False) -> Study:
    """The study of a model: one that is known here, or one made from the window in its configuration.

    short: lengths that take seconds.
    """
    study = _STUDIES.get(model)
    if study is None:
        window = window_of(read_model_config(model))
        study = Study(model, window, 2 * window, 4 * window, (window, 2 * window - 64, 4 * window - 64))
    if not short:
        return study
    window = study.window
    return replace(study, maps=window + window // 2, longest=2 * window, needles=(window - 12,), depths=2, texts=1)


class Subject:
    """A loaded model on which methods are put in turn."""

    def __init__(self, study: Study) -> None:
        """Load the study's model, without a method."""
        self.study = study
        model, tokenizer = get_model_and_tokenizer(study.model, None, Original.name, {}, study.window)
        self.model: PreTrainedModel = model
        self.tokenizer: PreTrainedTokenizerBase = tokenizer

    def put(self, method: str, params: Params, target: int | None = None, window: int | None = None) -> PreTrainedModel:
        """The model with a method on it, told the window W (None: the study's).

        Raises ValueError for parameters that do not reach `target`.
        """
        window = window or self.study.window
        return install(self.model, build_method(method, params, window, target), window)

    def rope(self) -> Rope:
        """The model's rotary scheme."""
        stock: Any = uninstall(self.model)
        return rope_of(stock.config, stock.base_model.rotary_emb, self.study.window)

    def tokens(self, texts: Iterable[str], length: int) -> list[Tensor]:
        """The first `length` tokens of the first texts that have so many, as many as the study reads: (1, length) each.

        Raises ValueError if none has.
        """
        return [ids for _, ids in self._read(texts, length)]

    def long_enough(self, texts: Iterable[str], length: int) -> list[str]:
        """The beginnings of the same texts. Raises ValueError if none has `length` tokens."""
        return [text for text, _ in self._read(texts, length)]

    def _read(self, texts: Iterable[str], length: int) -> list[tuple[str, Tensor]]:
        found: list[tuple[str, Tensor]] = []
        for text in texts:
            # A token has rarely more than eight characters: a book need not be tokenised whole.
            beginning = text[: 16 * length]
            ids = self.tokenizer(beginning, return_tensors="pt", verbose=False)["input_ids"]
            if ids.shape[1] >= length:
                found.append((beginning, ids[:, :length].to(self.model.device)))
            if len(found) == self.study.texts:
                break
        if not found:
            raise ValueError(f"no text has {length} tokens; give a folder with longer ones")
        return found


def caption(texts: str, *read: tuple[Subject, int]) -> str:
    """What a picture's figures are of. texts: which ones were read. read: by which models, and how many tokens."""
    facts = [
        f"{short_model(subject.study.model)}; W = {subject.study.window:,}; {tokens:,} tokens; "
        f"{device_name(subject.model.device)}."
        for subject, tokens in read
    ]
    return " ".join([*facts, f"Read: {texts.replace('`', '')}."])


def each_method(methods: Mapping[str, Params], what: str) -> Iterable[tuple[str, Params]]:
    """(name, parameters) of each method, behind a progress bar."""
    items: Iterable[tuple[str, Params]] = tqdm(methods.items(), desc=what, unit="method", leave=False)
    return items


def seed_everything(seed: int = 0) -> None:
    """One seed, and no gradients: what is drawn is the same in every run."""
    torch.manual_seed(seed)
    torch.set_grad_enabled(False)
