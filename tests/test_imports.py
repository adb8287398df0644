"""The import graph of the project's own modules: no circle, no arrow upwards, and few that know transformers."""

import ast
import functools
import graphlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("models", "tasks", "pipeline", "comparison", "analysis", "benchmarks", "tools", "chat", "gali")
SCRIPTS = ("pred", "eval", "collect_results", "compare")
# Packages that a package must not import, with all below them.
FORBIDDEN = {
    "models": ("tasks", "pipeline", "comparison", "analysis", "benchmarks", "tools", "chat"),
    "tasks": ("pipeline", "comparison", "analysis", "benchmarks", "tools", "chat"),
    "pipeline": ("comparison", "analysis", "benchmarks", "tools", "chat"),
    "comparison": ("analysis", "benchmarks", "tools", "chat"),
    "chat": ("comparison", "analysis", "benchmarks", "tools"),
}
# Modules that import transformers where they run, besides all of `models.DPI.patches`.
KNOW_TRANSFORMERS = {
    "models.DPI.loading", "models.DPI.losses", "models.DPI.dpi", "models.DPI.dpi_withoutflash",
    "models.DPI.short_names",
    "pipeline.model_files", "pipeline.model_loader", "pipeline.dry_run", "tasks.template_trial",
    "analysis.study", "analysis.attention_maps", "analysis.lengths", "analysis.logits",
    "benchmarks.model",
    "tools.fit_dpe",
    "chat.session",
    "tools.measure_tiny", "tools.tiny_data", "tools.train_tiny",
}  # fmt: skip


class Imports(ast.NodeVisitor):
    """The names that a module imports, anywhere in it; `a.b` for `import a.b`, `a.b.c` for `from a.b import c`."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def visit_Import(self, node: ast.Import) -> None:
        self.names |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "imports are absolute"
        self.names |= {f"{node.module}.{alias.name}" for alias in node.names}

    def visit_If(self, node: ast.If) -> None:
        """What only a type checker reads is no import."""
        names = {part.id for part in ast.walk(node.test) if isinstance(part, ast.Name)}
        for child in [] if "TYPE_CHECKING" in names else node.body:
            self.visit(child)
        for child in node.orelse:
            self.visit(child)


def imports_of(source: str) -> set[str]:
    found = Imports()
    found.visit(ast.parse(source))
    return found.names


def files() -> Iterator[tuple[str, Path]]:
    """Every module's name with its file."""
    for path in [
        *(ROOT / f"{name}.py" for name in SCRIPTS),
        *(p for name in PACKAGES for p in (ROOT / name).rglob("*.py")),
    ]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


@functools.cache
def imported() -> dict[str, set[str]]:
    """All names that each module imports, other packages' included."""
    return {name: imports_of(path.read_text(encoding="utf-8")) for name, path in files()}


def arrows(names: Iterable[str], modules: Iterable[str]) -> set[str]:
    """The modules among `modules` that imported names stand for: themselves, or what is in them."""
    known = set(modules)
    return {found for name in names if (found := name if name in known else name.rpartition(".")[0]) in known}


def graph() -> dict[str, set[str]]:
    return {name: arrows(names, imported()) - {name} for name, names in imported().items()}


def test_the_graph_sees_every_kind_of_import() -> None:
    source = (
        "import a.b\ndef f():\n    from c.d import e\nif TYPE_CHECKING:\n    import g\nelse:\n    from h import i, j\n"
    )
    names = imports_of(source)
    assert names == {"a.b", "c.d.e", "h.i", "h.j"}
    assert arrows(names, ["a", "a.b", "c.d", "h", "h.i"]) == {"a.b", "c.d", "h.i", "h"}
    found = graph()
    assert {"pipeline.sweep", "pipeline.dry_run", "pipeline.config"} <= found["pred"], "at the top and in functions"
    assert "models.DPI.methods" in found["tasks.pictures.style"]


def test_there_is_no_circle() -> None:
    try:
        graphlib.TopologicalSorter(graph()).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_arrow_goes_up(package: str) -> None:
    upwards = [
        f"{name} imports {other}"
        for name, others in graph().items()
        if name.partition(".")[0] == package
        for other in sorted(others)
        if other.partition(".")[0] in (*FORBIDDEN[package], *SCRIPTS)
    ]
    assert upwards == []


def test_few_modules_know_transformers() -> None:
    knowing = {name for name, names in imported().items() if any(n.split(".")[0] == "transformers" for n in names)}
    assert {name for name in knowing if not name.startswith("models.DPI.patches.")} <= KNOW_TRANSFORMERS


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_styles_and_labels_leaves_the_backend() -> None:
    code = (
        "import matplotlib, sys; import models.DPI.methods, tasks.pictures.style, tasks.pictures.scores;"
        "print(matplotlib.get_backend(), 'matplotlib.pyplot' in sys.modules)"
    )
    assert python(code, MPLBACKEND="svg") == "svg False"


@pytest.mark.parametrize(
    ("imports", "absent"),
    [
        ("import pred, eval, collect_results, compare", ["torch", "matplotlib", "transformers", "datasets"]),
        (
            "import tasks; [tasks.get_task(name) for name in tasks.task_names()]",
            ["torch", "matplotlib", "transformers", "datasets"],
        ),
        (
            "import pred, eval, collect_results, compare, chat.terminal;"
            "pred.details(), eval.details(), collect_results.details(), compare.details(),"
            "chat.terminal.parser().format_help()",
            ["torch", "matplotlib", "transformers", "datasets"],
        ),
    ],
)
def test_what_takes_seconds_is_imported_when_it_is_needed(imports: str, absent: list[str]) -> None:
    assert python(f"import sys; {imports}\nprint([name for name in {absent} if name in sys.modules])") == "[]"
