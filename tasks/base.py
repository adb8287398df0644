"""The protocol between a benchmark and the pipeline.

A benchmark is one file in `tasks/` with one subclass of `Task`. It says which data sets it has, yields their
records, turns a record into a prompt, predicts one record with an `Engine`, and scores prediction lines. It does
not know where results lie, which records are done already, or how many processes share the work: the runner
(`pipeline/runner.py`) does that and calls `predict` once a record.

Words used throughout:

data set  one prediction file, `<dataset>.jsonl`, in the experiment's folder
record    a dict with a key `id`, a string that is unique in its data set and the same in every run
line      what `predict` returns: one JSON object of the prediction file
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from pipeline.config import ExperimentConfig

Record = dict[str, Any]
Line = dict[str, Any]


@dataclass(frozen=True)
class Generation:
    """One continuation: its text without special tokens, and the token counts of the prompt and of what follows."""

    text: str
    prompt_tokens: int
    new_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.new_tokens


class Engine(Protocol):
    """A loaded model with its tokenizer and configuration, as a task sees it; `pipeline/engine.py` has the real one."""

    cfg: ExperimentConfig
    tokenizer: PreTrainedTokenizerBase

    def generate(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int,
        *,
        stop_token_ids: Sequence[int] = (),
        min_new_tokens: int = 0,
    ) -> Generation:
        """Greedy continuation of `prompt`: token ids as they are, or a text, tokenised with its special tokens.

        `stop_token_ids` end the text besides the model's own end tokens. Several turns are several calls.
        """
        ...

    def token_losses(self, input_ids: Sequence[int]) -> Tensor:
        """Negative log-likelihood (nats, fp32, on the CPU) of tokens 1 … n − 1, each given all before it: (n − 1,)."""
        ...


class Task(ABC):
    """One benchmark. Instances hold no state of a run; every method gets the configuration that it needs."""

    name: ClassVar[str]
    """The name in configurations, after aliases are resolved, such as "longbench_e"."""
    folder: ClassVar[str]
    """Where experiments lie below the results root, such as "lb/pred_e"."""
    scores_foreign: ClassVar[bool] = False
    """Whether prediction files that another program wrote, with no `run.json` beside them, can be scored."""

    @abstractmethod
    def datasets(self, cfg: ExperimentConfig) -> list[str]:
        """The data sets that a configuration runs when it names none (`cfg.tasks` empty)."""

    def known_datasets(self, cfg: ExperimentConfig) -> list[str]:
        """Every data set that `cfg.tasks` may name. The pipeline refuses others by name before this task sees them."""
        return self.datasets(cfg)

    @abstractmethod
    def records(self, cfg: ExperimentConfig, dataset: str) -> Iterable[Record]:
        """The records of one data set in their order, each with its `id`. Raises `UserError` where data are missing.

        `cfg.limit` and `cfg.test` are the pipeline's business, not this method's.
        """

    @abstractmethod
    def prompt(
        self, cfg: ExperimentConfig, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase
    ) -> list[int]:
        """Token ids of the (first) prompt of a record, exactly as `predict` feeds them. Used by `--dry-run` too."""

    @abstractmethod
    def predict(self, engine: Engine, dataset: str, record: Record) -> Line:
        """Run the model on one record and return its line, with at least

        `prefill_len`  tokens of the (first) prompt
        `final_len`    tokens of the prompt and its continuation

        The pipeline adds `id` first. Exceptions are the pipeline's: it writes the record down as failed.
        """

    @abstractmethod
    def score(self, cfg: ExperimentConfig | None, lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
        """Score prediction lines by data set (failed ones left out) and return JSON documents by file name.

        "result.json" is the authors' form and always there; "result_detail.json" holds what else is worth keeping.
        `cfg` is None for foreign prediction files (`scores_foreign`).
        """
