"""Every recorded case of the authors' code, through the public functions, on every implementation a CPU can run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.DPI import dpi, dpi_withoutflash

FOLDERS = {"gqa_w32_len100": 13, "crosses_window_w64_len60": 9}
TOLERANCE = 2e-4  # asked for are 1e-3
WAYS: dict[str, dict[str, Any]] = {
    "dpi": {},
    "dpi-sdpa": {"attn_impl": "sdpa"},
    "dpi-reference": {"attn_impl": "reference"},
    "withoutflash": {},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("folder", "number"), [(f, n) for f, count in FOLDERS.items() for n in range(count)])
def test_recorded_case(golden: Path, folder: str, number: int, way: str) -> None:
    description = json.loads((golden / folder / "cases.json").read_text())
    case = description["cases"][number]
    expected = load_file(golden / folder / "expected.safetensors")
    module = dpi_withoutflash if way == "withoutflash" else dpi
    model, _ = module.get_model_and_tokenizer(
        str(golden / folder),
        None,
        case["method"],
        case["params"],
        max_position_embeddings=description["window"],
        dtype=torch.float32,
        device="cpu",
        **WAYS[way],
    )
    ids = expected["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits
    torch.testing.assert_close(logits, expected[f"{case['tag']}.logits"], rtol=0, atol=TOLERANCE)
    if case["generated"]:
        new = description["new_tokens"]
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new,
            min_new_tokens=new,
            eos_token_id=None,
        )
        assert torch.equal(out[:, ids.shape[1] :], expected[f"{case['tag']}.generated"])


def test_no_case_is_left_out(golden: Path) -> None:
    """The tests above number the cases, since parameters are drawn before the folder is known to be there."""
    found = {p.parent.name: len(json.loads(p.read_text())["cases"]) for p in golden.glob("*/cases.json")}
    assert found == FOLDERS
