"""The processes of one run under `torchrun` or `accelerate launch`: ranks and barriers over gloo.

With tensor parallelism all processes hold pieces of one model, so they work on the same records and the first one
writes; otherwise every process has its own model and its share of the records.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tasks.errors import UserError

T = TypeVar("T")

# A process may wait for another as long as the longest share of the records takes.
PATIENCE = timedelta(days=30)


def cores() -> int:
    """Processor cores that this process may use: those of its affinity, and of the container's share where it has one.

    PyTorch knows of the first alone, and starts as many threads as the whole machine has cores in a container of two.
    """
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        found = min(found, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        pass
    return found


def threads_for(processes: int, cores: int, wanted: int) -> int:
    """Threads of one of several processes on a machine: `wanted`, but together no more than there are cores.

    Fewer stay fewer: who launched the processes chose so (torchrun sets one).
    """
    return max(1, min(wanted, cores // max(1, processes)))


def share_cores() -> None:
    """Let the processes of a run on this machine take no more threads together than it has cores.

    More would wait for each other at the end of every operation.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    before = torch.get_num_threads()
    threads = threads_for(processes, cores(), before)
    if threads != before:
        torch.set_num_threads(threads)


def check_same(what: str, first: tuple[object, str], other: tuple[object, str], remedy: str) -> None:
    """Raise `UserError` if two machines have different values, each with the machine's name.

    what: the values' name. remedy: what to do.
    """
    if other[0] != first[0]:
        both = f"{first[1]} has {first[0]!r}, {other[1]} {other[0]!r}"
        raise UserError(f"the machines of this run have different {what}: {both}; {remedy}")


class Workers:
    """This process among those of the run. A context manager: processes are joined on entry, parted on exit.

    Attributes: `rank` of this process, `count` of shares, `index` of this process's share, `is_main` (it merges and
    reports), `writes` (its lines go to disk).
    """

    _group: dist.ProcessGroup | None = None

    def __init__(self, *, tensor_parallel: bool = False) -> None:
        """tensor_parallel: whether the processes hold pieces of one model."""
        self.rank = int(os.environ.get("RANK", "0"))
        self.processes = int(os.environ.get("WORLD_SIZE", "1"))
        self.count = 1 if tensor_parallel else self.processes
        self.index = 0 if tensor_parallel else self.rank
        self.is_main = self.rank == 0
        self.writes = self.is_main or not tensor_parallel

    def __enter__(self) -> Workers:
        """Join the other processes, and share the machine's cores with them."""
        share_cores()
        if self.processes > 1:
            if not dist.is_initialized():
                backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
                dist.init_process_group(backend, timeout=PATIENCE)
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Part from them; after an error the launcher ends them."""
        if self._group is not None and kind is None:
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self._group is not None:
            dist.barrier(group=self._group)

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, where alone it is called. Its `UserError` is raised in all."""
        if self.processes == 1:
            return make()
        sent: list[Any] = [None, None]
        if self.is_main:
            try:
                sent[0] = make()
            except UserError as error:
                sent[1] = str(error)
        dist.broadcast_object_list(sent, src=0, group=self._group)
        if sent[1] is not None:
            raise UserError(sent[1])
        found: T = sent[0]
        return found

    def gather(self, value: T) -> list[T]:
        """What each process has for `value`, by rank, in all of them."""
        if self._group is None:
            return [value]
        found: list[Any] = [None] * self.processes
        dist.all_gather_object(found, value, group=self._group)
        return found

    def agree(self, what: str, value: object, remedy: str) -> None:
        """Raise `UserError` in all processes if they do not have the same `value`. what: its name. remedy: what to do.

        Machines may have copies of data and models of their own, and predictions of two would stand in one file.
        """
        found = self.gather((value, socket.gethostname()))
        first, first_host = found[0]
        for other, host in found:
            check_same(what, (first, first_host), (other, host), remedy)

    def device(self) -> str | None:
        """The GPU of this process where several share a machine, else None."""
        if self.processes > 1 and torch.cuda.is_available():
            return f"cuda:{int(os.environ.get('LOCAL_RANK', self.rank)) % torch.cuda.device_count()}"
        return None
