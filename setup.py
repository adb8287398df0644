"""Builds the package `gali` from the checkout's folders, which an installation has as `gali.models`, `gali.tasks`, ...

The checkout says `from models.DPI import ...`, and packages called `models` and `tasks` would collide with those of
others in site-packages. So the wheel has them below `gali`, and each import of ours gets that prefix while its file is
copied. Strings that name modules or scripts follow: `importlib` finds the modules, messages name installed commands.
"""

from __future__ import annotations

import ast
import io
import re
import shutil
import tokenize
from collections.abc import Iterator
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel
from setuptools.errors import SetupError

NAME = "gali"
COMMANDS = {
    "pred": "gali-pred",
    "eval": "gali-eval",
    "collect_results": "gali-collect",
    "compare": "gali-compare",
    "chat": "gali-chat",
}
"""Of the checkout's root, modules (scripts) or packages with a `main(argv)`; those that are there become commands."""
LEFT_OUT = (NAME, "tests", "tools", "benchmarks")
"""Packages of the checkout that stay there; `gali` itself keeps its place."""

ROOT = Path(__file__).parent.resolve()
FOLDERS = [name for name in find_packages(str(ROOT)) if name.partition(".")[0] not in LEFT_OUT]
SCRIPTS = [name for name in COMMANDS if (ROOT / f"{name}.py").is_file()]
OURS = {name.partition(".")[0] for name in FOLDERS} | set(SCRIPTS)

_MODULE_NAME = re.compile(r"(?<![\w./])[a-zA-Z_]\w*(?:\.[a-zA-Z_]\w*)+")
_SCRIPT_NAME = re.compile(rf"(?<![\w./])(?:python )?({'|'.join(COMMANDS)})\.py\b")
_OPENING = tuple(filter(None, (getattr(tokenize, f"{kind}STRING_START", None) for kind in "FT")))
_CLOSING = tuple(filter(None, (getattr(tokenize, f"{kind}STRING_END", None) for kind in "FT")))


def installed_form(source: str, name: str) -> str:
    """A module's source with the prefix before all that it imports from the checkout. name: of the file, for errors.

    Raises `SetupError` for an import that binds a name which the prefix would change.
    """
    lines = source.splitlines(keepends=True)
    edits = [*_imports(source, lines, name), *_strings(source, lines)]
    for row, begin, end, text in sorted(edits, reverse=True):
        lines[row] = lines[row][:begin] + text + lines[row][end:]
    return "".join(lines)


def _imports(source: str, lines: list[str], name: str) -> Iterator[tuple[int, int, int, str]]:
    """Row, first and last column, and what is to stand there, for every import of ours."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            if node.level == 0 and node.module and node.module.partition(".")[0] in OURS:
                row, column = node.lineno - 1, node.col_offset + len("from ")
                if not lines[row].startswith(node.module, column):
                    raise SetupError(f"{name}, line {row + 1}: write 'from {node.module} import ...' on one line")
                yield row, column, column, f"{NAME}."
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] not in OURS:
                    continue
                if alias.asname is None:
                    raise SetupError(
                        f"{name}, line {alias.lineno}: 'import {alias.name}' cannot be installed below {NAME!r}; write "
                        f"'from ... import ...', or 'import {alias.name} as ...'"
                    )
                yield alias.lineno - 1, alias.col_offset, alias.col_offset, f"{NAME}."


def _strings(source: str, lines: list[str]) -> Iterator[tuple[int, int, int, str]]:
    """Likewise for names in strings. An f-string counts as one, whatever is in its braces."""
    depth = 0
    begin = (0, 0)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in _OPENING:
            begin = begin if depth else token.start
            depth += 1
        elif token.type in _CLOSING:
            depth -= 1
        elif token.type == tokenize.STRING and not depth:
            begin = token.start
        else:
            continue
        if depth:
            continue
        for row in range(begin[0] - 1, token.end[0]):
            first = begin[1] if row == begin[0] - 1 else 0
            last = token.end[1] if row == token.end[0] - 1 else len(lines[row])
            for match in _MODULE_NAME.finditer(lines[row], first, last):
                if _is_ours(match[0]):
                    yield row, match.start(), match.start(), f"{NAME}."
            for match in _SCRIPT_NAME.finditer(lines[row], first, last):
                yield row, *match.span(), COMMANDS[match[1]]


def _is_ours(dotted: str) -> bool:
    """Whether a dotted name is a module of ours or something in one."""
    for name in (dotted, dotted.rpartition(".")[0]):
        place = ROOT.joinpath(*name.split("."))
        there = place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()
        if there and "." in name and name.partition(".")[0] in OURS:
            return True
    return False


class BuildPackage(build_py):  # type: ignore[misc]  # setuptools has no types
    """Copies modules in their installed form, the root's scripts among them."""

    def run(self) -> None:
        """What an earlier build left would go into the wheel, modules that are gone since among it."""
        shutil.rmtree(Path(self.build_lib) / NAME, ignore_errors=True)
        super().run()

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Package, name and file of each module."""
        found: list[tuple[str, str, str]] = super().find_package_modules(package, package_dir)
        return found + ([(package, name, f"{name}.py") for name in SCRIPTS] if package == NAME else [])

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        """Copy one module."""
        target, copied = super().build_module(module, module_file, package)
        source = Path(module_file).read_text(encoding="utf-8")
        Path(target).write_text(installed_form(source, module_file), encoding="utf-8")
        return target, copied


class NoEditable(editable_wheel):  # type: ignore[misc]
    """An editable installation would need the sources as they are, and they are another form."""

    def run(self) -> None:
        """Refuse."""
        raise SetupError(
            f"{NAME} cannot be installed with -e (--editable): the installed package has other imports than the "
            "checkout. Run the scripts in the checkout ('pip install -r requirements.txt'), or 'pip install .'"
        )


if __name__ == "__main__":
    setup(
        packages=[NAME, *(f"{NAME}.{name}" for name in FOLDERS)],
        package_dir={NAME: NAME, **{f"{NAME}.{name}": name.replace(".", "/") for name in FOLDERS}},
        package_data={"": ["py.typed", "*.json", "*.toml", "*.html", "*.css", "*.js"]}
        | {f"{NAME}.models": ["tiny/*"], f"{NAME}.tasks": ["data/*/*"]},
        entry_points={
            "console_scripts": [
                f"{command} = {NAME}.commands:{name}"
                for name, command in COMMANDS.items()
                if name in SCRIPTS or name in FOLDERS
            ]
        },
        cmdclass={"build_py": BuildPackage, "editable_wheel": NoEditable},
    )
