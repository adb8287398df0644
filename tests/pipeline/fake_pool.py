"""Workers of `pipeline.dispatch` as objects of this process, and small experiments to give them."""

import json
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import pred
from pipeline.config import ExperimentConfig
from pipeline.dispatch import Died, Dispatcher, Job
from pipeline.runner import Outcome
from pipeline.worker import Question, Reply, Worker

Kills = Callable[[int, Question, tuple[Any, ...]], bool]

ONE = "max_new_tokens = 3\nlimit = 8\nmin_k = 0.15\nmax_k = 0.2\ngap = 0.05\ntimes = 1\n"
"""Of needle: eight prompts of some 150 to 200 tokens."""


class FakePool:
    """`pipeline.dispatch.Pool` whose workers answer in the order of a seed. kills: whether one dies over a question.

    hosts: the machines of workers in the order in which they start; then, and without any, this one.
    """

    def __init__(self, size: int, seed: int = 0, kills: Kills = lambda *_: False, hosts: Sequence[str] = ()) -> None:
        self.size = size
        self._chance = random.Random(seed)
        self._kills = kills
        self._starts = iter(hosts)
        self._hosts = [next(self._starts, "") for _ in range(size)]
        self._workers = [Worker(Path.cwd()) for _ in range(size)]
        self._asked: dict[int, tuple[Question, tuple[Any, ...]]] = {}
        self.questions: list[tuple[int, Question, tuple[Any, ...]]] = []
        self.renewed: list[int] = []

    def ask(self, worker: int, question: Question, *arguments: Any) -> None:
        assert worker not in self._asked, "one question at a time"
        self._asked[worker] = question, arguments
        self.questions.append((worker, question, arguments))

    def wait(self) -> Iterator[tuple[int, Reply | Died]]:
        if self._asked:
            worker = self._chance.choice(sorted(self._asked))
            question, arguments = self._asked.pop(worker)
            if self._kills(worker, question, arguments):
                yield worker, Died("it was killed")
                return
            with pytest.MonkeyPatch.context() as patch:
                if self._hosts[worker]:
                    patch.setattr(socket, "gethostname", lambda: self._hosts[worker])
                reply = self._workers[worker].answer(question, arguments)
            yield worker, reply

    def renew(self, worker: int) -> None:
        self.renewed.append(worker)
        self._hosts[worker] = next(self._starts, "")
        self._workers[worker] = Worker(Path.cwd())

    def count(self, question: Question) -> int:
        return sum(each[1] == question for each in self.questions)


def write_configurations(folder: Path, model: Path) -> None:
    """One experiment of 8 records in `one.toml`, and a sweep in `sweep.toml`."""
    (folder / "one.toml").write_text(
        f'model = "{model}"\nexp_name = "dpi-tiny"\nmethod = "dpi"\ntask = "needle"\nmax_pe = 256\n{ONE}'
        "[params]\nchunk_coe = 16\nlocal_window = 8\n"
    )
    (folder / "sweep.toml").write_text(
        f'{ONE}[sweep]\ntasks = ["needle"]\nmethods = ["dpi", "repro_ntk", "repro_original"]\n'
        f'[[sweep.models]]\nmodel = "{model}"\nname = "tiny"\nwindows = [64]\ntargets = [224, 256]\n'
        "[sweep.params.dpi]\nchunk_coe = 16\nlocal_window = 8\n[sweep.params.repro_ntk]\nfactor = 4.0\n"
    )


def experiments(*arguments: str, cfg: str = "one.toml") -> list[ExperimentConfig]:
    return pred.read_experiments(Path(cfg), list(arguments), [])[0]


def run(
    pool: FakePool, cfgs: list[ExperimentConfig], results: Path, *, overwrite: bool = False
) -> list[tuple[Job, dict[str, Outcome]]]:
    found = list(Dispatcher(pool, results, overwrite=overwrite).run([(cfg, cfg.exp_name) for cfg in cfgs]))
    assert not list(results.rglob(".part-*"))
    return found


def alone(results: str, cfg: str = "one.toml", *arguments: str) -> Path:
    """The results of one process."""
    assert pred.main(["--cfg", cfg, "--results", results, *arguments]) == 0
    return Path(results)


def files(results: Path) -> dict[str, bytes]:
    return {str(path.relative_to(results)): path.read_bytes() for path in sorted(results.rglob("*.jsonl"))}


def settings(results: Path) -> list[dict[str, Any]]:
    """Run records without what differs from run to run."""
    changing = ("started", "resumed", "processes")
    found = [json.loads(path.read_text()) for path in sorted(results.rglob("run.json"))]
    return [{key: value for key, value in each.items() if key not in changing} for each in found]
