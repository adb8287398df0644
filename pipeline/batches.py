"""From records to lines: one by one, or several generated together. An error is its record's own.

Records of similar length share a batch, the longest first. A batch that does not fit into the GPU's memory is halved,
and no later one is larger; whatever else fails in a batch is tried alone, so that a line does not depend on its
neighbours.
"""

from __future__ import annotations

import gc
import logging
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, ParamSpec, TypeVar

from pipeline import signals, store
from pipeline.text import printable
from tasks.base import Dialogue, Engine, Generation, GenerationTask, Line, Record, Request, Task
from tasks.errors import UserError
from tasks.options import Options

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

BatchSize = int | Literal["auto"]

AUTO_RECORDS = 32
"""The most records of a batch where memory decides; beyond, a GPU decodes hardly more tokens a second."""

POOL = 8
POOL_RECORDS = 128
"""Among how many batches' records similar lengths are looked for, and of how many records prompts are kept at most."""


def pool_size(rows: int) -> int:
    """Among how many records batches of so many rows look for similar lengths."""
    return max(rows, min(POOL * rows, POOL_RECORDS)) if rows > 1 else 1


@dataclass(frozen=True)
class Failure:
    """An error as text: its traceback would keep what it speaks of in the GPU's memory."""

    text: str
    trace: str
    out_of_memory: bool

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Of an error that was raised, or is reported."""
        import torch

        return cls(
            f"{type(error).__name__}: {error}",
            "".join(traceback.format_exception(error)),
            isinstance(error, torch.OutOfMemoryError),
        )


def attempt(run: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Failure:
    """What `run` returns, or why it failed; then memory is given back. A `UserError` ends the run."""
    signals.check()
    try:
        return run(*args, **kwargs)
    except UserError:
        raise
    except Exception as error:
        signals.check()  # a signal that came out as another error is not the record's failure
        failure = Failure.of(error)
    free_memory()  # not before the error and its frames are gone
    return failure


def free_memory() -> None:
    """Give the GPU's cached memory back, so that the record after one that ran out of memory has it all."""
    import torch

    try:
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
    except RuntimeError as error:  # the record's own error is the one to keep
        logger.warning("the GPU's memory could not be given back: %s", error)


def finished(dataset: str, record: Record, found: Line | Failure) -> Line:
    """A record's line: what the task said, or the error in place of a prediction."""
    if not isinstance(found, Failure):
        line = {"id": record["id"], **found}
        said = attempt(store.dump_line, line)  # what cannot stand in a file is the record's failure
        if not isinstance(said, Failure):
            return line
        found = said
    logger.error("%s, %s", dataset, printable(f"record {record['id']} failed: {found.text}", keep="\n\t"))
    logger.debug("%s", printable(found.trace, keep="\n\t"))
    return {"id": record["id"], "error": found.text}


def predict(
    task: Task, engine: Engine, options: Options, dataset: str, records: Sequence[Record], batches: Batches | None
) -> Iterator[Line]:
    """The lines of a data set's records as they are ready. Without `batches` one by one."""
    if batches is None:
        for record in records:
            yield finished(dataset, record, attempt(task.predict, engine, options, dataset, record))
    else:
        yield from batches.predict(options, dataset, records)


@dataclass(eq=False)
class _Member:
    """A record on its way through `dialogue`. alone: it shares no batch any more."""

    record: Record
    dialogue: Dialogue
    request: Request
    alone: bool = False


class Batches:
    """Generates records of a task together, as many as `batch_size` says or as the engine's memory holds."""

    def __init__(self, task: GenerationTask, engine: Engine, batch_size: BatchSize) -> None:
        """batch_size: records at most; "auto" asks the engine for its memory, and is 1 where that is not a GPU's.

        `rows` is the most records of a batch.
        """
        self._task = task
        self._engine = engine
        self._most_tokens = engine.batch_tokens() if batch_size == "auto" else None
        if batch_size != "auto":
            self.rows = batch_size
        else:
            self.rows = 1 if self._most_tokens is None else AUTO_RECORDS
            logger.info("batch_size = auto: at most %d records, %s tokens", self.rows, self._most_tokens or "any")

    def predict(self, options: Options, dataset: str, records: Sequence[Record]) -> Iterator[Line]:
        """The lines of a data set's records as they are ready, each with its id."""
        size = pool_size(self.rows)
        for first in range(0, len(records), size):
            yield from self._predict_pool(options, dataset, records[first : first + size])

    def _predict_pool(self, options: Options, dataset: str, records: Sequence[Record]) -> Iterator[Line]:
        members: list[_Member] = []
        for record in records:
            dialogue = attempt(self._task.dialogue, options, dataset, record, self._engine.tokenizer)
            if isinstance(dialogue, Failure):
                yield finished(dataset, record, dialogue)
            elif not isinstance(said := _go_on(next, dialogue), Request):
                yield finished(dataset, record, said)
            else:
                members.append(_Member(record, dialogue, said))
        while members:
            speaking: list[_Member] = []
            for member, found in self._generate(members):
                said = found if isinstance(found, Failure) else _go_on(member.dialogue.send, found)
                if isinstance(said, Request):
                    speaking.append(_Member(member.record, member.dialogue, said))
                else:
                    yield finished(dataset, member.record, said)
            members = speaking

    def _generate(self, members: Sequence[_Member]) -> Iterator[tuple[_Member, Generation | Failure]]:
        """Every member's continuation, or why there is none."""
        waiting = deque(sorted(members, key=lambda member: (member.request.ending, -len(member.request.prompt))))
        while waiting:
            batch = self._take(waiting)
            answers = attempt(self._engine.generate, [member.request for member in batch])
            if isinstance(answers, Failure):
                if len(batch) == 1:
                    yield batch[0], answers
                elif answers.out_of_memory:
                    self._halve(batch)
                    waiting.extendleft(reversed(batch))
                else:
                    logger.warning("%d records failed together, each is tried alone: %s", len(batch), answers.text)
                    _put_back_alone(waiting, batch)
                continue
            for member, answer in zip(batch, answers, strict=True):
                if isinstance(answer, Generation):
                    yield member, answer
                elif len(batch) == 1:
                    yield member, Failure.of(answer)
                else:
                    _put_back_alone(waiting, [member])

    def _take(self, waiting: deque[_Member]) -> list[_Member]:
        """Take the next batch. The first has the longest prompt of those that end as it does."""
        batch = [waiting.popleft()]
        first = batch[0].request
        while (
            waiting
            and not batch[0].alone
            and waiting[0].request.ending == first.ending
            and len(batch) < self.rows
            and (self._most_tokens is None or (len(batch) + 1) * first.most_tokens <= self._most_tokens)
        ):
            batch.append(waiting.popleft())
        return batch

    def _halve(self, batch: Sequence[_Member]) -> None:
        """Let no batch be larger than half of this one, which is the size of its first record times its records."""
        longest, half = batch[0].request.most_tokens, len(batch) // 2
        self._most_tokens = half * longest
        logger.warning("out of memory with %d records of up to %d tokens; going on with %d", len(batch), longest, half)


def _go_on(step: Callable[P, Request], *args: P.args, **kwargs: P.kwargs) -> Request | Line | Failure:
    """A dialogue's next request, or its line."""

    def run() -> Request | Line:
        try:
            return step(*args, **kwargs)
        except StopIteration as end:
            line: Line = end.value
            return line

    return attempt(run)


def _put_back_alone(waiting: deque[_Member], members: Sequence[_Member]) -> None:
    for member in reversed(members):
        member.alone = True
        waiting.appendleft(member)
