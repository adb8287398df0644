import importlib.util
import itertools
import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

import pred
from pipeline.dry_run import MOST_PROMPTS, estimate_memory, quantiles, sample
from tasks.errors import UserError
from tests.pipeline.small import save_model, tiny_model


def test_memory_estimate_against_a_hand_count() -> None:
    model = tiny_model()
    estimate = estimate_memory(model.config, tokens=100, bytes_per_number=2)
    assert estimate.weights == 2 * sum(p.numel() for p in model.parameters())
    assert estimate.cache == 2 * 2 * (2 * 2 * 8 * 100)  # layers × (key, value) × heads × head_dim × tokens
    assert estimate.total == estimate.weights + estimate.cache + estimate.activations


def test_memory_of_llama3_8b_is_about_known() -> None:
    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip
    estimate = estimate_memory(config, 32768, 2)
    assert estimate.weights == pytest.approx(16.06e9, rel=0.01)
    assert estimate.cache == 4 * 2**30


def test_sample_takes_all_or_an_even_share_with_both_ends() -> None:
    assert sample(list(range(5))) == [0, 1, 2, 3, 4]
    taken = sample(list(range(1000)))
    assert len(taken) == len(set(taken)) == MOST_PROMPTS
    assert taken[0] == 0
    assert taken[-1] == 999
    gaps = [b - a for a, b in itertools.pairwise(taken)]
    assert max(gaps) - min(gaps) <= 1


def test_quantiles() -> None:
    assert quantiles([5]) == [5] * 5
    assert quantiles([40, 10, 30, 20, 0]) == [0, 10, 20, 30, 40]


ONE = 'model = "{model}"\nexp_name = "a"\ntask = "needle"\nmethod = "dpi"\nmax_pe = 256\nlimit = 2\nmin_k = 0.15\n\
max_k = 0.2\ngap = 0.05\ntimes = 1\nmax_new_tokens = 3\n[params]\nchunk_coe = 16\nlocal_window = 8\n'
SWEEP = 'limit = 2\nmax_new_tokens = 3\n[sweep]\ntasks = ["needle"]\nmethods = ["dpi"]\n[[sweep.models]]\n\
model = "{model}"\nname = "m"\nwindows = [64]\ntargets = [256]\n[sweep.params.dpi]\nlocal_window = 8\n'


@pytest.fixture
def on_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with configurations, on a machine without a GPU, of a cluster that may have some."""
    model = save_model(tmp_path / "model")
    (tmp_path / "one.toml").write_text(ONE.format(model=model))
    (tmp_path / "sweep.toml").write_text(SWEEP.format(model=model))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: name if name == "ray" else find(name, *more))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dry(cfg: str, *keys: str, launcher: tuple[str, ...] = ("--launcher", "ray")) -> int:
    return pred.main(["--cfg", cfg, *launcher, "--dry-run", *(f"--set={key}" for key in keys)])


@pytest.mark.usefixtures("on_a_cluster")
@pytest.mark.parametrize("cfg", ["one.toml", "sweep.toml"])
@pytest.mark.parametrize("key", ["device=cuda", "attn_impl=flash"])
def test_devices_that_only_the_cluster_has_are_not_refused(
    cfg: str, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry(cfg, key) == 0
    assert "needle" in capsys.readouterr().out
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(UserError, match=key.partition("=")[0]):
        dry(cfg, key)


@pytest.mark.usefixtures("on_a_cluster")
@pytest.mark.parametrize(
    ("key", "dtype"), [("device=cuda", "bfloat16"), ("device=cpu", "float32"), ("dtype=fp16", "float16")]
)
def test_memory_is_that_of_the_clusters_devices_and_time_is_nobodys(
    key: str, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry("one.toml", key) == 0
    out = capsys.readouterr().out
    assert f"tokens in {dtype}: about" in out
    assert "time: not estimated, as other machines run this" in out


@pytest.mark.usefixtures("on_a_cluster")
def test_what_no_machine_has_is_refused_all_the_same(on_a_cluster: Path) -> None:
    with pytest.raises(UserError, match=r"^one\.toml: attn_impl is 'none'; it must be one of"):
        dry("one.toml", "attn_impl=none")
    folder = on_a_cluster / "results/needle/pred/a"
    assert pred.main(["--cfg", "one.toml", "--set=device=cpu"]) == 0
    assert dry("one.toml", "device=cuda", "limit=3") == 0, "a device may change"
    assert json.loads((folder / "run.json").read_text())["config"]["device"] == "cpu"
    with pytest.raises(UserError, match="attn_impl was 'auto', is 'flash'"):
        dry("one.toml", "attn_impl=flash")
