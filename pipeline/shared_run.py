"""One experiment whose records are handed out to workers: its locked folder, what is still to do, where lines go."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import store
from pipeline.batches import Failure, finished
from pipeline.distributed import Workers
from pipeline.experiment import RunFile
from pipeline.progress import Observer, Times, Tracker
from pipeline.runner import Outcome, begin, finish
from pipeline.waiting import MOST_TRIES, Queue, Unit
from pipeline.worker import Checked, Ready
from tasks import get_task
from tasks.base import Line, Record


class SharedRun:
    """See the module. All is written by this process, as by a run of one process.

    `queue` has what is still to do. `observers` are told of each line.
    """

    def __init__(
        self, checked: Checked, results: Path, records: Mapping[str, list[Record]], processes: int, *, overwrite: bool
    ) -> None:
        """Begin: the folder is made, locked, and its run record written. processes: workers, for the run record.

        Raises `UserError` if another run has the folder, or it holds something else.
        """
        cfg = checked.cfg
        task = get_task(cfg.task)
        self._records = dict(records)
        self._folder = store.experiment_folder(results, task, cfg.exp_name)
        self._appenders: dict[str, store.Appender] = {}
        self._alone = Workers()
        store.make_folder(self._folder)
        with contextlib.ExitStack() as stack:
            stack.enter_context(store.lock(self._folder))
            self._run = RunFile(
                cfg, self._folder, self._records, window=checked.window, processes=processes,
                model_revision=checked.revision, automatic=checked.automatic, overwrite=overwrite,
            )  # fmt: skip
            self.queue = Queue(task, begin(task, self._folder, self._records, self._alone))
            self.observers: list[Observer] = [stack.enter_context(Times(self._folder, rank=0, processes=1))]
            if cfg.tracker is not None:
                self.observers.append(stack.enter_context(Tracker(cfg, cfg.tracker)))
            self._stack = stack.pop_all()

    def note(self, ready: Ready) -> None:
        """Write down what predicts from now on. Raises `UserError` if what is there was decoded otherwise."""
        self._run.note(ready.device, ready.generation)

    def write(self, dataset: str, line: Line, seconds: float) -> None:
        """Write a line down; it is on disk when this returns. seconds: that its worker took."""
        if dataset not in self._appenders:
            path = store.prediction_file(self._folder, dataset)
            self._appenders[dataset] = self._stack.enter_context(store.Appender(path))
        self._appenders[dataset].write(line)
        for observe in self.observers:
            observe(dataset, line, seconds)

    def put_back(self, unit: Unit, rest: Sequence[Record], reason: str) -> None:
        """Take back what a dead worker has left. Records that too many died over have failed. reason: of the last."""
        for record in self.queue.put_back(unit, rest):
            text = f"{MOST_TRIES} workers died over it; the last one: {reason}"
            self.write(unit.dataset, finished(unit.dataset, record, Failure(text, reason, out_of_memory=False)), 0.0)

    def finish(self) -> dict[str, Outcome]:
        """Bring the prediction files into order, and give the folder back."""
        try:
            return finish(self._folder, self._records, self._alone)
        finally:
            self.close()

    def close(self) -> None:
        """Give the folder back as it is; what is there is whole."""
        self._stack.close()
