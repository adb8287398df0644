import platform

import pytest
import torch
import transformers

from benchmarks.machine import machine


def test_the_device_and_the_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Some GPU")
    said = machine()
    assert said.startswith("Some GPU, torch ")
    assert torch.__version__.split("+")[0] in said
    assert f"transformers {transformers.__version__}" in said
    assert said.endswith(f"Python {platform.python_version()}")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert machine().startswith("CPU, ")
