"""What `pip install .` brings: one package, whole, that needs nothing of the checkout."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from setuptools.errors import SetupError

import gali
from gali import commands
from models import DPI

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = {"tests", "tools", "benchmarks"}


def files_of_the_tree() -> list[str]:
    """What git knows or would add, and is there."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted({name for name in found if (ROOT / name).is_file()})


@pytest.fixture(scope="module")
def setup_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_of_gali", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves folders in the tree. What an earlier build left there must not come along."""
    tree = tmp_path_factory.mktemp("tree")
    for name in files_of_the_tree():
        if not name.startswith(("images/", "results/", "tests/", "docs/")) and not name.endswith(".ipynb"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    stale = tree / "build" / "lib" / "gali" / "models" / "gone.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-build-isolation",
        "--no-deps",
        "-w",
        str(out),
        ".",
    ]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    [path] = out.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands for site-packages."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(installed: Path, code: str, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python where the checkout cannot be imported. typed: its standard input."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(
        command, cwd=installed, env=environment, input=typed, capture_output=True, text=True, timeout=300
    )


def test_wheel_holds_one_package_and_all_of_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read("gali-0.1.0.dist-info/entry_points.txt").decode()
    assert {name.partition("/")[0] for name in names} == {"gali", "gali-0.1.0.dist-info"}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - LEFT_OUT
    assert {"models", "tasks", "pipeline", "analysis"} <= packages
    scripts = {f"{name}.py" for name in ("pred", "eval", "collect_results", "compare")}
    wanted = {
        name if name.startswith("gali/") else f"gali/{name}"
        for name in files_of_the_tree()
        if name.partition("/")[0] in packages or name in scripts
    }
    assert {name for name in names if name.startswith("gali/")} == wanted
    there = sorted(["chat", *(name.removesuffix(".py") for name in scripts if (ROOT / name).exists())])
    found = dict(re.findall(r"^(gali-\w+) = gali\.commands:(\w+)$", entry_points, re.MULTILINE))
    assert sorted(found.values()) == there
    assert {"gali-pred", "gali-eval", "gali-collect", "gali-chat"} <= found.keys()


def test_every_module_can_be_imported_without_the_checkout(installed: Path) -> None:
    names = [
        ".".join(path.relative_to(installed).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(installed.glob("gali/**/*.py"))
    ]
    assert len(names) > 100
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n    importlib.import_module(name)\n"
        f"checkout = {str(ROOT)!r}\n"
        "ours = [m for m in list(sys.modules.values()) if (getattr(m, '__file__', None) or '').startswith(checkout)\n"
        "        and '/site-packages/' not in m.__file__]\n"
        "assert not ours, ours\n"
        "assert not {'models', 'tasks', 'pipeline', 'analysis', 'pred'} & sys.modules.keys()\n"
    )
    done = python(installed, code, *names)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_installed_names_are_lazy_and_the_embedded_model_is_there(installed: Path) -> None:
    code = (
        "import sys, gali\n"
        "assert 'torch' not in sys.modules\n"
        "from gali.tasks import get_task, task_names\n"
        "[get_task(name) for name in task_names()]\n"
        "from gali import get_model_and_tokenizer\n"
        "model, tokenizer = get_model_and_tokenizer('tiny', None, 'dpi', {'chunk_coe': 1, 'local_window': 256})\n"
        "print(model.config.max_position_embeddings)\n"
    )
    done = python(installed, code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["512"]


COMMAND = "import sys; sys.argv[0] = 'gali-pred'; from gali.commands import pred; pred()"


def test_a_command_runs_a_script_and_names_commands(installed: Path) -> None:
    done = python(installed, COMMAND, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: gali-pred" in done.stdout
    assert "chunk_coe" in done.stdout, "methods are described from their source"
    assert "pred.py" not in done.stdout
    done = python(installed, COMMAND, "--cfg", "absent.toml")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")


def test_the_chat_is_a_command_too(installed: Path) -> None:
    code = "import sys; sys.argv[0] = 'gali-chat'; from gali.commands import chat; chat()"
    done = python(installed, code, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: gali-chat" in done.stdout
    assert "tools.chat" not in done.stdout
    done = python(installed, code, "--max-new-tokens", "3", "--device", "cpu", typed="Once upon a time\n/quit\n")
    assert done.returncode == 0, done.stderr
    assert "tiny with GALI, W 512, target 4,096" in done.stdout
    assert "new 3 at" in done.stdout


def test_a_run_record_names_the_version_and_no_foreign_commit(installed: Path) -> None:
    """`installed` is made a repository, as that of a project whose environment lies in it."""
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        person = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *person, *command], cwd=installed, check=True, capture_output=True)
    code = "from gali.pipeline.experiment import _package_versions, git_revision as g; print(_package_versions(), g())"
    done = python(installed, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{'gali': '0.1.0', ")
    assert done.stdout.endswith("} None\n")


@pytest.mark.parametrize("missing", ["rich", "tqdm"])
def test_a_command_without_its_packages_says_which(installed: Path, missing: str) -> None:
    done = python(installed, f"import sys; sys.modules[{missing!r}] = None; {COMMAND}", "--help")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: this command needs the package '{missing}")
    assert "gali[eval]" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_editable_installation_is_refused_in_words(setup_script: ModuleType) -> None:
    with pytest.raises(SetupError, match=r"editable.*pip install \."):
        setup_script.NoEditable.run(object())


def test_imports_and_names_in_strings_get_the_prefix(setup_script: ModuleType) -> None:
    source = (
        "from models.DPI import (\n    dpi,\n)\n"
        "from modelsmith import x; from tasks import get_task\n"
        "import pipeline.cli as cli, json\n"
        "HOMES = {'a': \"models.DPI.methods\", 'b': 'sweep.models.DPI', 'c': 'tasks', 'd': 'models.absent.x.y'}\n"
        "models.DPI  # models.DPI\n"
        "text = f\"{cli.x!r} see models.DPI.dpi.load; {'pred.py'} python eval.py ä models.DPI\"\n"
        "path = 'a/pred.py', 'spread.py', 'pred.pyc'\n"
    )
    assert setup_script.installed_form(source, "x.py") == (
        "from gali.models.DPI import (\n    dpi,\n)\n"
        "from modelsmith import x; from gali.tasks import get_task\n"
        "import gali.pipeline.cli as cli, json\n"
        "HOMES = {'a': \"gali.models.DPI.methods\", 'b': 'sweep.models.DPI', 'c': 'tasks', 'd': 'models.absent.x.y'}\n"
        "models.DPI  # models.DPI\n"
        "text = f\"{cli.x!r} see gali.models.DPI.dpi.load; {'gali-pred'} gali-eval ä gali.models.DPI\"\n"
        "path = 'a/pred.py', 'spread.py', 'pred.pyc'\n"
    )


@pytest.mark.parametrize("source", ["import tasks\n", "import json, pipeline.cli\n", "from  tasks import get_task\n"])
def test_an_import_that_cannot_get_the_prefix_is_refused(setup_script: ModuleType, source: str) -> None:
    with pytest.raises(SetupError, match=r"x\.py, line 1"):
        setup_script.installed_form(source, "x.py")


def test_pins_lie_within_what_the_package_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]

    def declared(names: list[str]) -> dict[str, Requirement]:
        return {(each := Requirement(line)).name: each for line in names if not line.startswith("gali[")}

    def pinned(file: str) -> dict[str, Requirement]:
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        return {(each := Requirement(line)).name: each for line in lines if line and not line.startswith(("#", "-r"))}

    for file, ranges in (
        ("requirements.txt", declared([*project["dependencies"], *extras["eval"]])),
        ("requirements-dev.txt", declared([*extras["notebook"], *extras["dev"]])),
        ("requirements-ray.txt", declared(extras["ray"])),
    ):
        for name, pin in pinned(file).items():
            [version] = [specifier.version for specifier in pin.specifier]
            assert name in ranges, f"{name} of {file} is not declared"
            assert ranges[name].specifier.contains(version), f"{name} {version} of {file}"


def test_the_package_in_the_checkout_has_the_names_of_the_method() -> None:
    assert gali.install is DPI.install
    assert sorted(gali.__all__) == sorted(DPI.__all__)
    with pytest.raises(AttributeError):
        _ = gali.nothing
    assert commands.pred.args == ("pred",)  # type: ignore[attr-defined]
