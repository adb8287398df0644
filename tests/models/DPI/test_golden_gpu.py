"""The recorded cases of the authors' code again, on a GPU."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.DPI import dpi
from tests.models.DPI.test_golden import FOLDERS


@pytest.mark.gpu
@pytest.mark.parametrize(("folder", "number"), [(f, n) for f, count in FOLDERS.items() for n in range(count)])
def test_recorded_case_on_a_gpu(golden: Path, folder: str, number: int) -> None:
    description = json.loads((golden / folder / "cases.json").read_text())
    case = description["cases"][number]
    expected = load_file(golden / folder / "expected.safetensors")
    model, _ = dpi.get_model_and_tokenizer(
        str(golden / folder),
        None,
        case["method"],
        case["params"],
        max_position_embeddings=description["window"],
        dtype=torch.float32,
        device="cuda",
    )
    with torch.no_grad():
        logits = model(expected["input_ids"].cuda()).logits.cpu()
    torch.testing.assert_close(logits, expected[f"{case['tag']}.logits"], rtol=0, atol=1e-3)
