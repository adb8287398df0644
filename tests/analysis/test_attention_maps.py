"""Averages over heads and layers: equal to those of `output_attentions=True`, in the memory of one map; differences."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from analysis.attention_maps import (
    by_distance,
    distance_groups,
    draw_differences,
    draw_logit_maps,
    draw_maps,
    logit_thumbnail,
    mean_attention,
    mean_logits,
    row_entropy,
    thumbnail,
)
from models.DPI import dpi, dpi_withoutflash
from models.DPI.attention.bands import Plan
from models.DPI.methods import METHODS as METHODS_BY_NAME
from models.DPI.methods import build_method
from models.DPI.methods.dpi import DPI
from models.DPI.methods.selfextend import SelfExtend
from models.DPI.patches.Llama import install, installed_method, observe, uninstall
from tasks.pictures.style import DARK
from tests.models.DPI import oracle

ROOT = Path(__file__).resolve().parents[2]
WINDOW, LENGTH = 32, 77

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("repro_original", {}),
    ("dpi", {"chunk_coe": 1, "local_window": 8}),
    ("dpi", {"chunk_coe": 30, "local_window": 4, "noise_type": "gaussian"}),
    ("repro_se", {"group_size": 5, "window_size": 16}),
    ("repro_chunkllama", {"local_window": 4}),
    ("repro_yarn", {"factor": 3.0}),
]


@pytest.fixture(scope="module")
def folder(make_model: Callable[..., PreTrainedModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a tokenizer, as a folder."""
    path = tmp_path_factory.mktemp("model")
    words = {f"<{number}>": number for number in range(101)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<0>"))).save_pretrained(path)
    make_model(window=WINDOW).save_pretrained(path)
    return path


@pytest.mark.parametrize(("method", "params"), METHODS)
def test_equals_the_materialised_model(folder: Path, method: str, params: dict[str, Any]) -> None:
    ids = torch.randint(3, 101, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    whole, _ = dpi_withoutflash.get_model_and_tokenizer(str(folder), None, method, params, WINDOW, device="cpu")
    with torch.inference_mode():
        attentions = whole(ids, output_attentions=True).attentions  # L of (B, H, T, N)
    expected = torch.stack(attentions).mean((0, 2))
    lean, _ = dpi.get_model_and_tokenizer(str(folder), None, method, params, WINDOW, device="cpu")
    found = mean_attention(lean, ids, block=19)
    assert found.shape == (2, LENGTH, LENGTH)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("method", "params"), [entry for entry in METHODS if "noise_type" not in entry[1]])
def test_logits_are_those_of_every_pair(folder: Path, method: str, params: dict[str, Any]) -> None:
    """Each head's by the formulas, from queries and keys of the layers; averaged; -inf where nothing is seen."""
    ids = torch.randint(3, 101, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    model, _ = dpi.get_model_and_tokenizer(str(folder), None, method, params, WINDOW, device="cpu")
    built = installed_method(model)
    assert built is not None
    terms = oracle.terms(built, WINDOW, 0, LENGTH)
    layers: list[torch.Tensor] = []

    def form(layer: int, query: torch.Tensor, key: torch.Tensor, plan: Plan, scaling: float) -> None:
        inv_freq = oracle.inv_freq_of(list(plan.rows[0].segments))
        layers.append(oracle.logits(query.double(), key.double(), inv_freq, terms, scaling))  # (B, H, T, N)

    with observe(model, form), torch.no_grad():
        model.base_model(ids)
    found = mean_logits(model, ids, block=19)
    seen = oracle.causal_mask(0, LENGTH)
    expected = torch.stack(layers).mean((0, 2)).float()
    torch.testing.assert_close(found[:, seen], expected[:, seen], atol=2e-4, rtol=0)
    assert (found[:, ~seen] == -math.inf).all()


@pytest.mark.parametrize(("method", "params"), METHODS)
def test_one_heads_logits_give_its_probabilities(
    make_model: Callable[..., PreTrainedModel], method: str, params: dict[str, Any]
) -> None:
    """With noise and padding too: padding is not seen, and the softmax of what is left is the map."""
    model = make_model(window=WINDOW, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    install(model, build_method(method, params, WINDOW), WINDOW)
    ids = torch.randint(3, 101, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :21] = 0
    logits = mean_logits(model, ids, mask, block=16)
    real = mask[:, :, None] * mask[:, None] == 1
    assert torch.equal(logits > -math.inf, real & oracle.causal_mask(0, LENGTH))
    found = logits.softmax(-1).nan_to_num(0)  # of a row that sees nothing
    torch.testing.assert_close(found, mean_attention(model, ids, mask, block=16), atol=2e-6, rtol=0)


def test_within_the_window(folder: Path) -> None:
    """Where the stock attention runs, the plan still says what it computes."""
    ids = torch.arange(3, 3 + WINDOW)[None]
    params = {"chunk_coe": 1, "local_window": 8}
    model, _ = dpi_withoutflash.get_model_and_tokenizer(str(folder), None, "dpi", params, WINDOW, device="cpu")
    with torch.inference_mode():
        expected = torch.stack(model(ids, output_attentions=True).attentions).mean((0, 2))
    torch.testing.assert_close(mean_attention(model, ids), expected, atol=2e-6, rtol=0)


def test_padding_has_no_part(folder: Path) -> None:
    """A left-padded row's map is that of the row alone, behind the padding."""
    params = {"chunk_coe": 1, "local_window": 8}
    model, _ = dpi.get_model_and_tokenizer(str(folder), None, "dpi", params, WINDOW, device="cpu")
    ids = torch.randint(3, 101, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :21] = 0
    found = mean_attention(model, ids, mask, block=16)
    torch.testing.assert_close(found[:1], mean_attention(model, ids[:1]), atol=2e-6, rtol=0)
    torch.testing.assert_close(found[1:, 21:, 21:], mean_attention(model, ids[1:, 21:]), atol=2e-6, rtol=0)
    assert not found[1, :21].any()
    assert not found[1, :, :21].any()


def test_a_model_without_a_method_is_refused(make_model: Callable[..., PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match="install one first"):
        mean_attention(uninstall(make_model()), torch.tensor([[3, 4]]))


def test_entropy_of_known_rows() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]])
    expected = torch.tensor([0.0, 4.0, 2.0]).clamp(min=1).log()
    torch.testing.assert_close(row_entropy(rows), expected)


def test_a_thumbnail_holds_means() -> None:
    whole = torch.arange(25.0).reshape(5, 5)
    small = thumbnail(whole, 3)
    assert small.shape == (3, 3)
    assert small[0, 0] == whole[:2, :2].mean()
    assert small[2, 2] == whole[4, 4]


def test_a_thumbnail_of_logits_holds_means_of_what_is_seen() -> None:
    logits = torch.arange(16.0).reshape(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -math.inf)
    small = logit_thumbnail(logits, 2)
    assert small[0, 0] == (0 + 4 + 5) / 3
    assert small[1, 0] == (8 + 9 + 12 + 13) / 4
    assert small[1, 1] == (10 + 14 + 15) / 3
    assert small[0, 1].isnan()


def test_logit_maps_share_the_originals_scale() -> None:
    """A panel per method; every method's colours are on the scale of the first."""
    causal = torch.ones(40, 40).triu(1).bool()
    maps = {name: torch.full((40, 40), value).masked_fill(causal, -math.inf) for name, value in
            (("repro_original", -3.0), ("dpi", 2.0))}  # fmt: skip
    maps["repro_original"][20:] -= 2
    figure = draw_logit_maps(maps, window=16)
    images = [axis.images[0] for axis in figure.axes if axis.images]
    assert [image.get_clim() for image in images[:2]] == [(-5.0, -3.0)] * 2
    cells = images[1].get_array()
    assert cells is not None
    assert float(cells[39, 0]) == 2.0


SCRIPT = """
import sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from analysis.attention_maps import mean_attention
from models.DPI.methods import build_method
from models.DPI.patches.Llama import install

length, layers = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024

config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=layers,
                     num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024)
model = LlamaForCausalLM(config).eval()
install(model, build_method("dpi", dict(chunk_coe=1, local_window=256), 1024), 1024)
mean_attention(model, torch.arange(1100)[None] % 64, block=64)
before = peak()
found = mean_attention(model, torch.arange(length)[None] % 64, block=64)
assert abs(found.sum(-1) - 1).max() < 1e-3
print(peak() - before)
"""


def _raised(length: int, layers: int) -> int:
    """Bytes by which the maps of `length` tokens raise the peak over those of 1,100, in a process of its own."""
    command = [sys.executable, "-c", SCRIPT, str(length), str(layers)]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_memory_is_that_of_one_map() -> None:
    """Twelve layers of four heads would be 48 maps; one map and a block of queries are held."""
    length = 3_001
    one_map = 4 * length**2
    assert _raised(length, layers=12) < 2 * one_map


def test_groups_cover_every_distance_once() -> None:
    assert distance_groups(19, 8) == [(0, 4), (4, 8), (8, 12), (12, 16), (16, 19)]


def test_differences_by_hand() -> None:
    original = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.25, 0.25, 0.5]])
    method = torch.tensor([[1.0, 0, 0], [0.05, 0.95, 0], [0.25, 0.5, 0.25]])
    table = by_distance(original, {"dpi": method}, [(0, 1), (1, 3)])
    assert table["absolute"].tolist() == pytest.approx([(0.45 + 0.25) / 2.0, (0.45 + 0.25 + 0) / 1.0])
    # Ratios of the second group: 0.1, 2 and 1.
    assert table["q50"].tolist()[1] == pytest.approx(0)
    assert table["q5"].tolist()[1] == pytest.approx(-1)
    assert table["q95"].tolist()[1] == pytest.approx(math.log10(2))


def test_bars_have_the_colours_of_their_methods() -> None:
    names = ["dpi", "repro_se"]
    rows = [(name, 0, 4, 0.5, -1.0, -0.5, 0.0, 0.5, 1.0) for name in names]
    table = pd.DataFrame(rows, columns=["method", "low", "high", "absolute", "q5", "q25", "q50", "q75", "q95"])
    figure = draw_differences(table, window=4)
    found = [to_hex(bar.get_facecolor()).upper() for bar in figure.axes[0].patches]
    assert found == [DPI.colour, SelfExtend.colour]


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_the_colour_bars_label_lies_within_the_figure(count: int) -> None:
    names = list(METHODS_BY_NAME)[:count]
    figure = draw_maps({name: torch.full((77, 77), 0.1).tril() + torch.eye(77) for name in names}, WINDOW)
    figure.canvas.draw()
    label = figure.axes[-1].yaxis.label.get_window_extent()
    assert label.y0 >= 0
    assert label.y1 <= figure.bbox.height
    assert label.x1 <= figure.bbox.width
    panel = figure.axes[0]
    assert panel.title.get_color() == DARK
    assert to_hex(panel.spines["left"].get_edgecolor()).upper() == METHODS_BY_NAME[names[0]].colour
