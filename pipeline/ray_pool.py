"""Workers as actors of Ray, one for each GPU: the only module that knows Ray, which it imports when it is used.

With `RAY_ADDRESS` set, they are actors of the cluster that it names; otherwise a cluster is started on this machine,
which listens on no other address than its own, and ends with the run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline import signals
from pipeline.checks import check_requests
from pipeline.config import ExperimentConfig, source_of
from pipeline.dispatch import Died
from pipeline.distributed import cores, threads_for
from pipeline.experiment import INSTALLED
from pipeline.worker import Log, Question, Reply, Worker
from tasks.errors import UserError

logger = logging.getLogger(__name__)

SECONDS_TO_START = 60.0
"""After which it is said that a worker has not started."""
_OBJECT_STORE = 256 << 20
_LONGEST_FOLDER = 40


def check_launcher(experiments: Sequence[ExperimentConfig], path: Path, workers: int | None) -> None:
    """`check_requests`, and raise `UserError` where workers of Ray cannot run these experiments. path: of their file.

    workers: how many are asked for; None: one for each GPU.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers} must be 1 or more")
    if importlib.util.find_spec("ray") is None:
        raise UserError(f"--launcher ray: Ray is not installed; pip install {'gali[ray]' if INSTALLED else '.[ray]'!r}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--launcher ray starts its own processes; run it without torchrun and accelerate launch")
    if "://" in os.environ.get("RAY_ADDRESS", ""):
        raise UserError(
            f"RAY_ADDRESS = {os.environ['RAY_ADDRESS']!r} is for Ray's remote client; run this on a machine of the "
            "cluster with RAY_ADDRESS = auto"
        )
    for cfg in experiments:
        if cfg.engine != "transformers":
            raise UserError(
                f"{source_of(cfg, experiments, path)}: engine = {cfg.engine!r} spreads its records itself; "
                "run it without --launcher ray"
            )
        placed = {"device_map": cfg.device_map, "tp_plan": cfg.tp_plan}
        placed["device"] = cfg.device if cfg.device not in (None, "cpu", "cuda") else None
        for key, value in placed.items():
            if value is not None:
                raise UserError(
                    f"{source_of(cfg, experiments, path)}: --launcher ray gives each worker a GPU of its own, and "
                    f"{key} = {value!r}; leave {key} out"
                )
    check_requests(experiments, path, elsewhere=cluster_address() is not None)


def cluster_address() -> str | None:
    """Of the cluster that is given, whose machines have other devices; None for one on this machine ("local")."""
    given = os.environ.get("RAY_ADDRESS", "")
    return None if given in ("", "local") else given


class RayPool:
    """A `pipeline.dispatch.Pool`. A context manager: the cluster is joined or started on entry, and left on exit."""

    def __init__(self, workers: int | None, experiments: Sequence[ExperimentConfig]) -> None:
        """workers: how many; None: one for each GPU. experiments: without GPUs where all have device = "cpu"."""
        self.size = workers or 0
        self._on_gpus = any(cfg.device != "cpu" for cfg in experiments)
        self._address = cluster_address()
        self._stack = contextlib.ExitStack()
        self._ray: Any = None
        self._actor: Any = None
        self._threads = 1
        self._actors: list[Any] = []
        self._asked: dict[Any, int] = {}
        self._since: dict[int, float] = {}

    def __enter__(self) -> RayPool:
        """Raises `UserError` where the cluster does not answer, or has not as many GPUs or processors."""
        with contextlib.ExitStack() as stack:
            self._ray = stack.enter_context(_cluster(self._address, self.size))
            stack.callback(self._kill_all)
            self._actor = self._ray.remote(RayWorker)
            has = self._ray.cluster_resources()
            self.size, self._on_gpus = _size(self.size, int(has.get("GPU", 0)), int(has.get("CPU", 0)), self._on_gpus)
            found = int(has.get("CPU", 1)) if self._address else cores()
            self._threads = threads_for(
                self.size, found, int((os.environ.get("OMP_NUM_THREADS") or str(found)).partition(",")[0])
            )
            where = f"the cluster at {self._address}" if self._address else "this machine"
            logger.info("%d workers on %s, %s", self.size, where, "a GPU each" if self._on_gpus else "without GPUs")
            self._actors = [self._start(worker) for worker in range(self.size)]
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers, and the cluster that was started."""
        self._stack.close()

    def ask(self, worker: int, question: Question, *arguments: Any) -> None:
        """See `Pool`."""
        self._asked[self._actors[worker].answer.remote(question, arguments)] = worker

    def wait(self) -> Iterator[tuple[int, Reply | Died]]:
        """See `Pool`."""
        exceptions = self._ray.exceptions
        ready, _ = self._ray.wait(list(self._asked), timeout=0.5)
        more, _ = self._ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0) if ready else ([], [])
        for answer in more:
            worker = self._asked.pop(answer)
            self._since.pop(worker, None)
            try:
                reply = self._ray.get(answer)
            except exceptions.RayTaskError:
                raise  # an error in the worker's own code
            except exceptions.RayError as error:
                reply = Died(_reason(error))
            yield worker, reply
        self._say_who_waits()

    def renew(self, worker: int) -> None:
        """See `Pool`."""
        self._kill(self._actors[worker])
        self._actors[worker] = self._start(worker)

    def _start(self, worker: int) -> Any:
        self._since[worker] = time.monotonic()
        needs = {"num_gpus": 1, "num_cpus": 0} if self._on_gpus else {"num_gpus": 0, "num_cpus": 1}
        level = logging.getLogger().level
        return self._actor.options(**needs).remote(str(Path.cwd()), self._threads, level)

    def _kill(self, actor: Any) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor)

    def _kill_all(self) -> None:
        for actor in self._actors:
            self._kill(actor)

    def _say_who_waits(self) -> None:
        """A worker starts when the cluster has room for it, which may be never."""
        late = [worker for worker, since in self._since.items() if time.monotonic() - since > SECONDS_TO_START]
        for worker in late:
            del self._since[worker]
            what = "GPU" if self._on_gpus else "processor"
            logger.warning("worker %d of %d still waits for a free %s", worker + 1, self.size, what)


class RayWorker:
    """A `Worker` in a process of its own, as the actor that it is."""

    def __init__(self, folder: str, threads: int, level: int) -> None:
        """folder: the working directory of the run. threads: of PyTorch. level: of the log."""
        import torch

        from pipeline.cli import leave_out_notices

        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)  # of whatever the cluster was started in
        torch.set_num_threads(threads)
        log = Log()
        logging.captureWarnings(True)
        logging.getLogger().addHandler(log)
        logging.getLogger().setLevel(level)
        logging.getLogger("transformers").addHandler(log)  # which does not propagate
        if level > logging.DEBUG:
            leave_out_notices()
        self._worker = Worker(Path(folder), log)

    def answer(self, question: Question, arguments: Sequence[Any]) -> Reply:
        """See `Worker`."""
        return self._worker.answer(question, arguments)


@contextlib.contextmanager
def _cluster(address: str | None, workers: int) -> Iterator[Any]:
    """Ray, connected to a cluster; without an address to one on this machine that ends with the block."""
    settings = {"RAY_USAGE_STATS_ENABLED": "0"}
    local: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        if address is None:
            # A machine that is not part of a cluster listens on its loopback address alone; read when Ray is imported.
            settings |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
            folder = stack.enter_context(_folder())
            local = {
                "num_cpus": max(cores(), workers), "include_dashboard": False, "object_store_memory": _OBJECT_STORE,
                "_temp_dir": str(folder),
            }  # fmt: skip
        os.environ.update(settings)
        verbose = logger.isEnabledFor(logging.DEBUG)
        with signals.kept():
            import ray

            stack.callback(ray.shutdown, wait_for_processes=True)
            try:
                ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=verbose, **local)
            except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                where, remedy = "on this machine", ""
                if address:
                    where, remedy = f"at RAY_ADDRESS = {address!r}", " (set RAY_AUTH_MODE = token if it wants one)"
                said = " ".join(str(error).split())
                raise UserError(f"--launcher ray: no cluster {where}: {said}{remedy}") from error
        yield ray


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder for Ray's sockets and logs, with a short name: a socket's path has 107 bytes at most."""
    place = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="gali-ray-", dir=place if len(place) <= _LONGEST_FOLDER else "/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _size(workers: int, gpus: int, processors: int, on_gpus: bool) -> tuple[int, bool]:
    """How many workers there will be, and whether each has a GPU. workers: how many are asked for, or 0."""
    on_gpus = on_gpus and gpus > 0
    most, what = (gpus, "GPUs") if on_gpus else (processors, "processors")
    if not workers and not on_gpus:
        raise UserError("--launcher ray: there is no GPU for the workers; say how many there shall be: --workers N")
    if workers > most:
        raise UserError(f"--workers {workers}: there are {most} {what}; give a number up to that, or none")
    return workers or most, on_gpus


def _reason(error: Exception) -> str:
    """Why a worker is no more, in one line."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or ["no reason is known"]
    found = re.search(r"exit detail: (.*?)(?: There are some potential root causes|$)", " ".join(lines))
    return f"{type(error).__name__}: {(found[1] if found else lines[-1])[:300]}"
