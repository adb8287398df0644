"""Mutation testing: small changes to the code, one at a time, each of which some test must notice.

    python -m tools.mutants --count 120 --seed 1

takes that many mutants at random out of all of `models/DPI/methods`, `models/DPI/attention` (without kernels and
triton.py) and `tasks/metrics`, and runs the tests of the mutated file's folder on each, in a process of its own that
is forked after the imports that take time. It prints the survivors and how many were killed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType

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
LEFT_OUT = ("kernels", "triton.py", "__init__.py")
PRELOADED = (
    "hypothesis", "pydantic", "pytest", "rouge", "rouge_score.rouge_scorer", "torch", "transformers.modeling_utils",
    "transformers.models.llama.modeling_llama", "transformers.tokenization_utils_tokenizers",
)  # fmt: skip
"""What takes seconds to import; every fork has it."""
SECONDS = 240
"""For the tests of one mutant: one that runs for ever is noticed too."""

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
        elif isinstance(node, ast.Return) and node.value is not None:
            yield node, "value", ast.Constant(None), "return None"
        elif isinstance(node, ast.If | ast.IfExp | ast.While):
            yield node, "test", ast.UnaryOp(ast.Not(), node.test), "condition negated"


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


def is_killed(mutant: Mutant, tests: Sequence[str]) -> bool:
    """Whether a test fails, or does not end, on the mutant. It runs in a fork: imports of before stay as they are."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        name = ".".join(mutant.path.relative_to(ROOT).with_suffix("").parts)
        sys.meta_path.insert(0, Finder(name, mutated(mutant), mutant.path))
        signal.alarm(SECONDS)
        os._exit(_run(tests))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) != 0


def _run(tests: Sequence[str]) -> int:
    import pytest

    return int(pytest.main(["-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "not gpu", *tests]))


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

    folders = {
        folder: [mutant for path in sorted((ROOT / folder).glob("*.py")) if path.name not in LEFT_OUT
                 and arguments.only in str(path) for mutant in mutants_of(path)]
        for folder in TESTS
    }  # fmt: skip
    every = [(folder, mutant) for folder, found in folders.items() for mutant in found]
    sample = random.Random(arguments.seed).sample(every, min(arguments.count, len(every)))
    killed = 0
    for done, (folder, mutant) in enumerate(sample, start=1):
        its_own = [test for test in (_test_of(mutant.path),) if test is not None]
        found = bool(its_own and is_killed(mutant, its_own)) or is_killed(mutant, TESTS[folder])
        killed += found
        if not found:
            sys.stdout.write(f"survived: {mutant.path.relative_to(ROOT)}:{mutant.line} {mutant.said}\n")
        sys.stdout.write(f"{done} of {len(sample)} (of {len(every)} in all): {killed} killed\n")
        sys.stdout.flush()
    return 0 if killed >= 0.85 * len(sample) else 1


def _test_of(path: Path) -> str | None:
    """The test file of the same name, which is tried first."""
    relative = path.relative_to(ROOT)
    test = Path("tests") / relative.with_name(f"test_{relative.name}")
    return str(test) if test.is_file() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
