"""Which GPUs the fused kernels run on, and what is chosen for them."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from models.DPI.attention import api, cards, triton
from models.DPI.attention.cards import ADA, AMPERE, HOPPER, Card
from models.DPI.methods import build_method
from models.DPI.planning import Padding, make_plan
from tests.models.DPI import oracle

PLAN = make_plan(build_method("repro_original", {}, 24), oracle.rope(24, 16), Padding(None, 0, 9, 1), seed=0)
CUDA = torch.device("cuda")
GPUS = {"A100": AMPERE, "3090": Card((8, 6), 99 << 10), "Orin": Card((8, 7), 163 << 10), "4090": ADA, "H100": HOPPER}


@dataclass
class _Queries:
    """Queries on a GPU, of which an obstacle asks no more."""

    head_dim: int = 64
    dtype: torch.dtype = torch.bfloat16
    device: torch.device = CUDA

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, 2, 9, self.head_dim)


def _become(monkeypatch: pytest.MonkeyPatch, card: Card) -> None:
    monkeypatch.setattr(cards, "card_of", lambda device: card)
    monkeypatch.setattr(triton, "_is_installed", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("head_dim", triton.HEAD_DIMS)
def test_auto_takes_the_fused_kernels(name: str, head_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _become(monkeypatch, GPUS[name])
    q: Any = _Queries(head_dim)
    assert api.choose("auto", q, PLAN) == "triton"
    assert api.choose("triton", q, PLAN) == "triton"  # 16 of the components are rotary: that is no obstacle


@pytest.mark.parametrize(
    ("card", "why"),
    [
        (Card((7, 5), 64 << 10), "it needs a GPU of compute capability 8.0 (Ampere) or later, and this one has 7.5"),
        (Card((8, 9), 64 << 10), "its tiles need 99 KiB of shared memory, more than the 64 KiB of this GPU"),
        (Card((12, 0), 99 << 10), "its tiles need 227 KiB of shared memory, more than the 99 KiB of this GPU"),
    ],
)
def test_what_is_refused_is_said(card: Card, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _become(monkeypatch, card)
    q: Any = _Queries()
    assert triton.obstacle(q, PLAN) == why
    assert api.choose("auto", q, PLAN) == "sdpa"
    with pytest.raises(ValueError, match=why.split(",")[0].replace("(", r"\(").replace(")", r"\)")):
        api.choose("triton", q, PLAN)


def test_amd_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _become(monkeypatch, AMPERE)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    q: Any = _Queries()
    assert triton.obstacle(q, PLAN) == "it is written for NVIDIA's GPUs"


def test_a_device_that_is_no_gpu_has_a_card_for_the_interpreter() -> None:
    assert cards.card_of(torch.device("cpu")) == HOPPER


def test_what_only_later_cards_have() -> None:
    assert [name for name, card in GPUS.items() if card.has_copy_engine] == ["H100"]
