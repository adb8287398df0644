"""Mutation testing: small changes to the code, one at a time, each of which some test must notice.

    python -m tools.mutants --count 120 --seed 1

takes that many mutants at random out of all of `models/DPI/methods`, `models/DPI/attention` (without kernels and
triton.py) and `tasks/metrics`. First it runs the tests of each folder once and writes down which lines each of them
runs. Then each mutant, in a process of its own that is forked after the imports that take time, gets the tests that run
its line, the quickest first; what runs at import gets all of its folder's. It prints the survivors and how many were
killed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_METHODS = ["tests/models/DPI/methods", "tests/models/DPI/test_planning.py", "tests/models/DPI/test_help_funcs.py"]
_ATTENTION = [
    f"tests/models/DPI/attention/test_{name}.py"
    for name in ("reference", "tables", "noise", "sdpa", "api", "backends", "lifetime", "gradients")
]
TESTS = {
    "models/DPI/methods": _METHODS,
    "models/DPI/attention": [*_ATTENTION, *_METHODS],
    "tasks/metrics": ["tests/tasks/metrics", "tests/tasks/test_leval.py", "tests/tasks/test_longbench.py"],
}
"""Which tests are run for the files of a folder."""
LEFT_OUT = ("kernels", "triton.py", "triton_gradients.py", "__init__.py")
PRELOADED = (
    "hypothesis", "pydantic", "pytest", "rouge", "rouge_score.rouge_scorer", "torch", "transformers.modeling_utils",
    "transformers.models.llama.modeling_llama", "transformers.tokenization_utils_tokenizers",
)  # fmt: skip
"""What takes seconds to import; every fork has it."""
SECONDS = 400
"""Of processor time for the tests of one mutant: one that runs for ever is noticed, and a busy machine kills none."""
NO_TESTS = 5
"""What pytest ends with where it has run none."""

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.USub: ast.UAdd,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change. number: which of the file's places, in the order of `changed`."""

    path: Path
    number: int
    line: int
    said: str


def changed(tree: ast.Module) -> Iterator[tuple[ast.AST, str, object, str]]:
    """Every place that can be changed: node, field, the field's new value, and what the change is."""
    skipped = {id(inner) for node in ast.walk(tree) for inner in _unchanged(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        for field in ("op", "ops"):
            old = getattr(node, field, None)
            for place, each in enumerate(old if isinstance(old, list) else [old] if old is not None else []):
                if (new := SWAPS.get(type(each))) is not None:
                    value = [*old[:place], new(), *old[place + 1 :]] if isinstance(old, list) else new()
                    yield node, field, value, f"{type(each).__name__} -> {new.__name__}"
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield node, "value", not node.value, f"{node.value} -> {not node.value}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            yield node, "value", node.value + 1, f"{node.value} -> {node.value + 1}"
        elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
            yield node, "value", ast.Constant(None), "return None"
        elif isinstance(node, ast.If | ast.IfExp | ast.While):
            yield node, "test", ast.UnaryOp(ast.Not(), node.test), "condition negated"


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _unchanged(node: ast.AST) -> Iterator[ast.AST]:
    """What says nothing of behaviour: annotations, docstrings, messages of errors, how tables and pictures look."""
    parts: list[ast.AST | None] = []
    if isinstance(node, ast.arg | ast.AnnAssign):
        parts.append(node.annotation)
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in ("colour", "marker"):
        parts.append(node)
    if isinstance(node, ast.FunctionDef):
        parts.append(node.returns)
    if isinstance(node, ast.Raise | ast.Assert):
        parts.append(node)
    for part in parts:
        if part is not None:
            yield from ast.walk(part)


def mutants_of(path: Path) -> list[Mutant]:
    """All mutants of a file."""
    found = enumerate(changed(ast.parse(path.read_text(encoding="utf-8"))))
    return [Mutant(path, number, getattr(node, "lineno", 0), said) for number, (node, _, _, said) in found]


def mutated(mutant: Mutant) -> CodeType:
    """The mutant's code."""
    tree = copy.deepcopy(ast.parse(mutant.path.read_text(encoding="utf-8")))
    node, field, value, _ = list(changed(tree))[mutant.number]
    setattr(node, field, value)
    return compile(ast.fix_missing_locations(tree), str(mutant.path), "exec")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from other code than its file has."""

    def __init__(self, name: str, code: CodeType, path: Path) -> None:
        """name: of the module, with dots."""
        self._name, self._code, self._path = name, code, path

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The module's place, if it is the one."""
        if name != self._name:
            return None
        return importlib.util.spec_from_file_location(name, self._path, loader=self)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As usual."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Run the other code."""
        exec(self._code, module.__dict__)


@dataclass(frozen=True)
class Ran:
    """What a test did on the code as it is. lines: of the mutated files, "path:line"."""

    test: str
    seconds: float
    lines: list[str]


class Recorder:
    """A plugin of pytest that writes down what tests do."""

    def __init__(self, paths: Collection[Path]) -> None:
        """paths: the files whose lines count."""
        self._files = {str(path): str(path.relative_to(ROOT)) for path in paths}
        self.found: list[Ran] = []

    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> bool:
        """Run a test with its fixtures under trace."""
        from _pytest.runner import runtestprotocol

        lines: set[str] = set()

        def line(frame: FrameType, event: str, argument: object) -> Any:
            lines.add(f"{self._files[frame.f_code.co_filename]}:{frame.f_lineno}")
            return line

        def call(frame: FrameType, event: str, argument: object) -> Any:
            return line if frame.f_code.co_filename in self._files else None

        before, begin = sys.gettrace(), time.process_time()
        sys.settrace(call)
        threading.settrace(call)
        try:
            reports = runtestprotocol(item, nextitem=nextitem)
        finally:
            sys.settrace(before)
            threading.settrace(before)
        if any(report.failed for report in reports):
            raise RuntimeError(f"{item.nodeid} fails on the code as it is")
        self.found.append(Ran(item.nodeid, time.process_time() - begin, sorted(lines)))
        return True


class Chosen:
    """A plugin of pytest that keeps some tests, in the order in which they are named."""

    def __init__(self, tests: Sequence[str]) -> None:
        """tests: their names."""
        self._place = {test: place for place, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep and sort them."""
        items[:] = sorted(
            (item for item in items if item.nodeid in self._place), key=lambda item: self._place[item.nodeid]
        )


def record(folder: str, paths: Collection[Path]) -> list[Ran]:
    """What each of a folder's tests does. Raises `RuntimeError` where one of them fails."""
    with tempfile.TemporaryDirectory() as scratch:
        found = Path(scratch) / "ran.json"

        def work() -> int:
            recorder = Recorder(paths)
            code = _run(TESTS[folder], recorder)
            found.write_text(json.dumps([vars(ran) for ran in recorder.found]))
            return code

        if _in_a_fork(work) != 0:
            raise RuntimeError(f"the tests of {folder} do not pass on the code as it is")
        return [Ran(**ran) for ran in json.loads(found.read_text())]


def tests_of(mutant: Mutant, ran: Sequence[Ran]) -> list[str]:
    """The tests that run the mutant's line, the quickest first; all where none does, as for what runs at import."""
    line = f"{mutant.path.relative_to(ROOT)}:{mutant.line}"
    ordered = sorted(ran, key=lambda each: each.seconds)
    return [each.test for each in ordered if line in each.lines] or [each.test for each in ordered]


def is_killed(mutant: Mutant, tests: Sequence[str]) -> bool:
    """Whether a test fails, or does not end, on the mutant. It runs in a fork: imports of before stay as they are."""

    def work() -> int:
        name = ".".join(mutant.path.relative_to(ROOT).with_suffix("").parts)
        sys.meta_path.insert(0, Finder(name, mutated(mutant), mutant.path))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        return _run(dict.fromkeys(test.partition("::")[0] for test in tests), Chosen(tests))

    code = _in_a_fork(work)
    if code == NO_TESTS:
        raise RuntimeError(f"no test was found for {mutant}")
    return code != 0


def _in_a_fork(work: Callable[[], int]) -> int:
    """The exit code of a silent child that does the work; another one where it did not come to its end."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        code = 1
        with contextlib.suppress(BaseException):
            code = work()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _run(tests: Iterable[str], plugin: object) -> int:
    import pytest

    options = ["-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", "not gpu"]
    return int(pytest.main([*options, *tests], plugins=[plugin]))


def main(argv: list[str]) -> int:
    """Try a sample of mutants; the exit code is 1 where fewer than 85 % are killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=120, help="mutants, of all files together")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--only", default="", metavar="TEXT", help="files whose path holds it")
    arguments = parser.parse_args(argv)
    os.chdir(ROOT)
    os.environ.setdefault("TRITON_INTERPRET", "1")
    for name in PRELOADED:
        importlib.import_module(name)

    sources = {
        folder: [path for path in sorted((ROOT / folder).glob("*.py")) if path.name not in LEFT_OUT] for folder in TESTS
    }
    folders = {
        folder: [mutant for path in paths if arguments.only in str(path) for mutant in mutants_of(path)]
        for folder, paths in sources.items()
    }
    every = [(folder, mutant) for folder, found in folders.items() for mutant in found]
    sample = random.Random(arguments.seed).sample(every, min(arguments.count, len(every)))
    ran: dict[str, list[Ran]] = {}
    killed = 0
    for done, (folder, mutant) in enumerate(sample, start=1):
        if folder not in ran:
            ran[folder] = record(folder, sources[folder])
        found = is_killed(mutant, tests_of(mutant, ran[folder]))
        killed += found
        if not found:
            sys.stdout.write(f"survived: {mutant.path.relative_to(ROOT)}:{mutant.line} {mutant.said}\n")
        sys.stdout.write(f"{done} of {len(sample)} (of {len(every)} in all): {killed} killed\n")
        sys.stdout.flush()
    return 0 if killed >= 0.85 * len(sample) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
