"""What `--help` says of methods, benchmarks and keys: taken from where they are defined, and without PyTorch."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.config import RUN_KEYS, ExperimentConfig
from tasks import get_task, task_names
from tasks.options import Options

WIDTH = 78
_METHODS = Path(__file__).parents[1] / "models" / "DPI" / "methods"


@dataclass(frozen=True)
class MethodHelp:
    """A method's name in configurations, the name that people read, and its parameters."""

    name: str
    label: str
    params: tuple[str, ...]


def methods() -> list[MethodHelp]:
    """The registered methods, in order, as their source has them: to import them takes PyTorch, which takes seconds."""
    classes = {node.name: node for path in sorted(_METHODS.glob("*.py")) for node in _classes(path)}
    registry = ast.parse((_METHODS / "__init__.py").read_text(encoding="utf-8"))
    [value] = [
        node.value
        for node in registry.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "METHODS"
    ]
    assert value is not None
    registered = [node.id for node in ast.walk(value) if isinstance(node, ast.Name) and node.id in classes]
    return [_describe(classes[name], classes) for name in dict.fromkeys(registered) if name != "Method"]


def _classes(path: Path) -> Iterator[ast.ClassDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in tree.body if isinstance(node, ast.ClassDef))


def _describe(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> MethodHelp:
    constants: dict[str, Any] = {}
    params: dict[str, None] = {}
    for owner in _lineage(node, classes):
        for item in owner.body:
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            if not ast.unparse(item.annotation).startswith("ClassVar"):
                params[item.target.id] = None
            elif isinstance(item.value, ast.Constant):
                constants[item.target.id] = item.value.value
    return MethodHelp(constants["name"], constants["label"], tuple(params))


def _lineage(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> list[ast.ClassDef]:
    """A class behind those that it inherits from."""
    found = [node]
    for base in node.bases:
        name = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
        if name in classes:
            found = [*_lineage(classes[name], classes), *found]
    return found


def methods_help() -> str:
    """A line or more for each method."""
    found = methods()
    shared = [name for name in found[0].params if all(name in its.params for its in found)]
    lines = []
    for its in found:
        own = [name for name in its.params if name not in shared]
        lines.append(_entry(its.name, f"{its.label}: {', '.join(own)}" if own else its.label))
    head = f"methods, with their keys of [params]; all have {', '.join(shared)} too:"
    return "\n".join([head, *lines])


def tasks_help() -> str:
    """A line for each benchmark."""
    lines = [_entry(name, f"{(task := get_task(name)).label}, in {task.folder}/") for name in task_names()]
    return "\n".join(["tasks, and where in the results folder:", *lines])


def keys_help() -> str:
    """The keys of a configuration: those of every run and every benchmark, and each benchmark's own."""
    shared = set(Options.model_fields)
    parts = ["keys of a configuration (* must be given):", *_keys(ExperimentConfig, RUN_KEYS), *_keys(Options, shared)]
    for name in task_names():
        options = get_task(name).Options
        if own := set(options.model_fields) - shared:
            parts += [f"keys of task {name}:", *_keys(options, own)]
    return "\n".join(parts)


def _keys(model: type[BaseModel], names: set[str] | frozenset[str]) -> list[str]:
    fields = {name: field for name, field in model.model_fields.items() if name in names}
    return [
        _entry(f"{name}{'*' if field.is_required() else ''}", field.description or "") for name, field in fields.items()
    ]


def _entry(name: str, text: str) -> str:
    """A name and what it is, behind each other where the name is short, else on lines of their own."""
    indent = " " * 23
    first = f"  {name:<20} " if len(name) <= 20 else indent
    lines = [] if len(name) <= 20 else [f"  {name}"]
    lines += textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=indent) or [first]
    return "\n".join(line.rstrip() for line in lines)
