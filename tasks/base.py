"""The protocol between a benchmark and whoever runs it.

A benchmark is one file in `tasks/` with one subclass of `Task`, or of `GenerationTask` where a prediction is text. It
says which data sets and options it has, yields records, turns a record into a prompt, predicts one record with an
`Engine`, scores prediction lines, and knows how its scores are tabled and drawn. It does not know where results lie,
which records are done already, which are generated together, or how many processes share the work.

Words used throughout:

data set  one prediction file, `<dataset>.jsonl`, in the experiment's folder
record    a dict with a key `id`, a string that is unique in its data set and the same in every run
line      what `predict` returns: one JSON object of the prediction file
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from typing_extensions import override

from tasks.options import Options
from tasks.results import RESULT_FILE, Experiment, Score, mean_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Record = dict[str, Any]
Line = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What a model is to continue: token ids as they are, and how long. It decodes greedily.

    `stop_token_ids` end the text besides the model's own end tokens; none ends it before `min_new_tokens` tokens.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    min_new_tokens: int = 0

    @property
    def ending(self) -> tuple[int, tuple[int, ...], int]:
        """All but the prompt: requests that are equal in it can be continued together."""
        return self.max_new_tokens, self.stop_token_ids, self.min_new_tokens

    @property
    def most_tokens(self) -> int:
        """Of the prompt and the longest continuation."""
        return len(self.prompt) + self.max_new_tokens


@dataclass(frozen=True)
class Generation:
    """One continuation: its text without special tokens, and the token counts of the prompt and of what follows."""

    text: str
    prompt_tokens: int
    new_tokens: int

    @property
    def total_tokens(self) -> int:
        """Of both."""
        return self.prompt_tokens + self.new_tokens


class Engine(Protocol):
    """A loaded model with its tokenizer, as a task sees it."""

    tokenizer: PreTrainedTokenizerBase

    def generate(self, requests: Sequence[Request]) -> list[Generation | FloatingPointError]:
        """Continue each request as if it were alone. All must have the same `ending`.

        In place of a continuation whose logits are not finite stands the error.
        """
        ...

    def generation_settings(self) -> dict[str, Any]:
        """How texts are decoded, as JSON values. `set_aside`: the model's own settings that would have changed them."""
        ...

    def token_losses(self, input_ids: Sequence[int], slice_tokens: int) -> Tensor:
        """Negative log-likelihood (nats, fp32, on the CPU) of tokens 1 … n − 1, each given all before it: (n − 1,).

        slice_tokens: for how many tokens logits exist at a time; it changes no number.
        """
        ...

    def batch_tokens(self) -> int | None:
        """Tokens of a batch, padding and continuations included, that the GPU's free memory holds; None off a GPU."""
        ...


class Task(ABC):
    """One benchmark. Instances hold no state of a run; every method gets the options that it needs."""

    name: ClassVar[str]
    """The name in configurations, after aliases are resolved, such as "longbench_e"."""
    label: ClassVar[str]
    """The name that people read, such as "LongBench-E"."""
    folder: ClassVar[str]
    """Where experiments lie below the results root, such as "lb/pred_e"."""
    prefix: ClassVar[str]
    """How the names of collected tables and pictures begin, such as "lb_e"."""
    measure: ClassVar[str] = "score"
    """What a number of the tables is."""
    digits: ClassVar[int] = 2
    """Decimals of a score in tables."""
    Options: ClassVar[type[Options]] = Options
    """The keys of a configuration that the benchmark reads."""
    result_files: ClassVar[tuple[str, ...]] = (RESULT_FILE,)
    """Documents of `score` that are tabled, one sheet each; the first is "result.json"."""
    scores_foreign: ClassVar[bool] = False
    """Whether prediction files that another program wrote, with no `run.json` beside them, can be scored."""

    @abstractmethod
    def datasets(self) -> list[str]:
        """The data sets that a configuration runs when it names none."""

    def known_datasets(self) -> list[str]:
        """Every data set that a configuration may name. Others are refused by name before this task sees them."""
        return self.datasets()

    @abstractmethod
    def records(self, options: Any, dataset: str) -> Iterable[Record]:
        """The records of one data set in their order, each with its `id`. Raises `UserError` where data are missing,
        `AbsentDataError` where the folder of data has only others.

        options: an instance of `Options`, here and below. How many records are wanted is not this method's business.
        """

    def data_source(self, options: Any) -> dict[str, str] | None:
        """`repository` and `revision`, a commit, of data from the hub; None where data do not come from there."""
        return None

    @abstractmethod
    def prompt(self, options: Any, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids of the (first) prompt of a record, exactly as `predict` feeds them."""

    def most_new_tokens(self, options: Any, dataset: str) -> int:
        """The most tokens that the model generates for a record; 0 where it generates none."""
        return 0

    def whole_text(self, dataset: str, record: Record) -> str | None:
        """The prompt's text before anything is cut and without chat template; None where there is no such text."""
        return None

    def document(self, dataset: str, record: Record) -> str | None:
        """The text that a record's prompt begins with and other records ask about too; None where it has its own.

        Records of one document are predicted one after another, so that it can be read once.
        """
        return None

    @abstractmethod
    def predict(self, engine: Engine, options: Any, dataset: str, record: Record) -> Line:
        """Run the model on one record and return its line, with at least

        `prefill_len`  tokens of the (first) prompt
        `final_len`    tokens of the prompt and its continuation

        The runner adds `id` first. Exceptions are the runner's: it writes the record down as failed.
        """

    @abstractmethod
    def score(self, options: Any, lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
        """Score prediction lines by data set (failed ones left out) and return JSON documents by file name.

        "result.json" is the authors' form and always there; "result_detail.json" holds what else is worth keeping,
        every score as an object with the keys of `Score`. `options` is None for foreign files (`scores_foreign`).
        """

    @abstractmethod
    def columns(self, file: str, results: Mapping[str, Any]) -> dict[str, Score]:
        """The scores of one of `result_files` by column, none where the experiment has no such file.

        results: contents of an experiment's result files by name. Standard errors and counts come from
        "result_detail.json", where that is there (`tasks.results.detailed`).
        """

    def average(self, scores: Mapping[str, Score]) -> Score | None:
        """What stands in the table's last column: the mean over columns, or None where a mean says nothing."""
        return mean_of(list(scores.values()))

    def draw(self, experiments: Sequence[Experiment]) -> Figure | None:
        """The benchmark's picture of scored experiments; None where there is nothing to draw."""
        from tasks.pictures.scores import draw_scores

        return draw_scores(self, experiments)


Dialogue = Generator[Request, Generation, Line]
"""One record on its way: yields what the model is to continue, takes each continuation, and returns the line."""


class GenerationTask(Task):
    """A benchmark whose prediction is what the model says. Its records can be generated in batches."""

    @abstractmethod
    def dialogue(self, options: Any, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase) -> Dialogue:
        """Predict one record, with a `yield` wherever the model speaks; the line is as `predict` describes it.

        Several turns are several requests.
        """

    @override
    def prompt(self, options: Any, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return list(next(self.dialogue(options, dataset, record, tokenizer)).prompt)

    @override
    def predict(self, engine: Engine, options: Any, dataset: str, record: Record) -> Line:
        """A record by itself. The runner takes `dialogue`."""
        dialogue = self.dialogue(options, dataset, record, engine.tokenizer)
        request = next(dialogue)
        while True:
            (found,) = engine.generate([request])
            if isinstance(found, FloatingPointError):
                raise found
            try:
                request = dialogue.send(found)
            except StopIteration as end:
                line: Line = end.value
                return line
