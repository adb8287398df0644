"""What `models.DPI` offers, and that it costs nothing before it is used."""

import subprocess
import sys

import torch

import models.DPI
from models.DPI.patches.Llama import installed_method
from tests.models.DPI.helpers import CHUNK_FREE, WINDOW, MakeModel, logits, tokens


def test_all_names_are_there() -> None:
    assert set(dir(models.DPI)) == set(models.DPI.__all__)
    for name in models.DPI.__all__:
        assert getattr(models.DPI, name) is not None


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, models.DPI; print(sorted({'torch', 'transformers', 'triton', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_methods_need_no_transformers() -> None:
    code = "import sys; from models.DPI import METHODS; print('transformers' in sys.modules, len(METHODS) >= 7)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_a_block_with_a_method(make_model: MakeModel) -> None:
    model, ids = make_model(WINDOW), tokens(1, 50)
    stock = logits(model, ids)
    with models.DPI.installed(model, models.DPI.build_method("dpi", CHUNK_FREE), WINDOW) as same:
        assert same is model
        assert installed_method(model) is not None
        assert not torch.equal(logits(model, ids), stock)
    assert installed_method(model) is None
    assert torch.equal(logits(model, ids), stock)
