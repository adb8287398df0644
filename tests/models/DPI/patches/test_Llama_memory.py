"""No matrix of queries x keys is ever held whole: peak memory of a forward pass, measured in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")

ROOT = Path(__file__).resolve().parents[4]
HEADS = 4
SCRIPT = f"""
import sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from models.DPI.methods import build_method
from models.DPI.patches.Llama import install

length, noise, impl = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)

def peak():
    # getrusage would count what the parent held when it forked
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024

config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
                     num_attention_heads={HEADS}, num_key_value_heads=2, max_position_embeddings=1024)
model = LlamaForCausalLM(config).eval()
params = dict(chunk_coe=1, local_window=256, noise_type=noise)
install(model, build_method("dpi", params, 1024), 1024, attn_impl=impl)
ids = torch.arange(length)[None] % 64
with torch.no_grad():
    model(ids[:, :1100], logits_to_keep=1)
    before = peak()
    assert model(ids, logits_to_keep=1).logits.isfinite().all()
print(peak() - before)
"""


def _raised(length: int, noise: str, impl: str) -> int:
    """Bytes by which a pass over `length` tokens raises the peak over a short one's."""
    command = [sys.executable, "-c", SCRIPT, str(length), noise, impl]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize(("length", "noise", "share"), [(12_001, "no", 0.1), (6_001, "gaussian", 1.0)])
def test_peak_is_far_below_one_matrix(length: int, noise: str, share: float) -> None:
    """share: of one fp32 matrix of logits. With noise, blocks of it are formed, whose size does not grow."""
    matrix = HEADS * length * length * 4
    assert _raised(length, noise, "sdpa") < share * matrix


def test_the_measure_sees_a_matrix() -> None:
    """The materialised form does hold it."""
    length = 3_001
    assert _raised(length, "no", "reference") > 0.9 * HEADS * length * length * 4
