"""Loading: mistakes end in one line before any weight is read; dtype, device, window and tokenizer as documented."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from models.DPI import dpi, dpi_withoutflash, loading
from models.DPI.loading import resolve
from models.DPI.patches.Llama import installation_of, installed_method
from models.DPI.short_names import Source

SE = {"group_size": 3, "window_size": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one small layer with a tokenizer that has no padding token, W = 64."""
    path = tmp_path_factory.mktemp("model")
    words = {f"<{number}>": number for number in range(31)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<0>")), eos_token="<2>")
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).to(torch.float16).save_pretrained(path)
    return path


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if weights are asked for."""

    def loads(*args: Any, **kwargs: Any) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loads)


def _refused(said: str, *args: Any, **options: Any) -> None:
    for module in (dpi, dpi_withoutflash):
        with pytest.raises(ValueError, match=said) as caught:
            module.get_model_and_tokenizer(*args, **options)
        assert "\n" not in str(caught.value)
        assert type(caught.value) is ValueError


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("method", "params", "said"),
    [
        ("repro_sf", SE, "method is 'repro_sf'; it must be one of dpi, .*did you mean 'repro_se'"),
        ("dpi", {"local_windw": 3}, "unknown parameter 'local_windw'; did you mean 'local_window'"),
        ("repro_se", {"group_size": 3}, "parameter 'window_size' is missing"),
        ("repro_ntk", None, "parameter 'factor' is missing"),
        ("dpi", {"local_window": True}, "local_window = True: .*must be a whole number"),
        ("dpi", {"local_window": "3"}, "local_window = '3': .*must be a whole number"),
        ("dpi", {"chunk_coe": True, "local_window": 3}, "chunk_coe = True"),
        ("dpi", {"std_base": "1"}, "std_base = '1': must be a number"),
        ("dpi", {}, "local_window = 128 must be smaller than the model's window of 64 tokens"),
        ("repro_se", SE | {"window_size": 64}, "window_size = 64 must be smaller than the model's window of 64"),
        ("repro_chunkllama", {"local_window": 48}, "local_window = 48 must be smaller than 48, three quarters"),
    ],
)
def test_a_mistake_in_the_method(folder: Path, method: str, params: dict[str, Any], said: str) -> None:
    _refused(said, str(folder), None, method, params)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("method", "params", "said"),
    [
        ("repro_se", SE, r"reaches 160 tokens from a window of 64, less than the target of 161; .*group_size = 4"),
        ("repro_ntk", {"factor": 2.5}, r"factor = 2.5 reaches 160 tokens .* target of 161; set a factor of at least"),
        ("repro_dynamic_ntk", {"factor": 2.5}, r"factor = 2.5 reaches 160 tokens"),
        ("repro_yarn", {"factor": 2.5}, r"factor = 2.5 reaches 160 tokens"),
    ],
)
def test_a_target_out_of_reach(folder: Path, method: str, params: dict[str, Any], said: str) -> None:
    _refused(said, str(folder), None, method, params, target_length=161)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_position_embeddings": 0}, "max_position_embeddings = 0 must be at least 1"),
        ({"max_position_embeddings": 16}, "window_size = 16 must be smaller than the model's window of 16 tokens"),
        ({"dtype": "float8"}, "dtype is 'float8'; it must be one of bfloat16"),
        ({"device": "gpu"}, "device is 'gpu'; it must be cpu"),
        ({"device_map": "atuo"}, "device_map is 'atuo'; it must be one of auto"),
        ({"tp_plan": "colwise"}, "tp_plan is 'colwise'; it must be 'auto'"),
    ],
)
def test_a_mistake_in_the_options(folder: Path, options: dict[str, Any], said: str) -> None:
    _refused(said, str(folder), None, "repro_se", SE, **options)


@pytest.mark.usefixtures("no_weights")
def test_an_unknown_implementation(folder: Path) -> None:
    with pytest.raises(ValueError, match="attn_impl is 'fast'; it must be one of auto, triton"):
        dpi.get_model_and_tokenizer(str(folder), None, "repro_se", SE, attn_impl="fast")


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("name", ["no-such-name", "./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"])
def test_a_model_that_is_nothing(name: str) -> None:
    _refused("is neither a folder, nor a Hugging Face id .*, nor a short name .*smollm2-135m", name, None, "dpi", {})


@pytest.mark.usefixtures("no_weights")
def test_a_folder_without_a_model(tmp_path: Path) -> None:
    _refused("holds no config.json", str(tmp_path), None, "dpi", {})


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("given", [False, True], ids=["read", "given"])
def test_a_rotary_scheme_that_is_not_supported(folder: Path, tmp_path: Path, given: bool) -> None:
    """In the model's own configuration, or in the one given."""
    written = json.loads((folder / "config.json").read_text())
    written["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(written))
    config = AutoConfig.from_pretrained(tmp_path) if given else None
    _refused("rope_type = 'dynamic'", str(folder if given else tmp_path), config, "repro_original", {})


@pytest.mark.usefixtures("no_weights")
def test_an_architecture_that_is_not_supported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    _refused("model_type is 'gpt2'; .* llama, mistral", str(tmp_path), None, "repro_original", {})


@pytest.mark.usefixtures("no_weights")
def test_what_needs_no_model_is_checked_before_one_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetches() -> None:
        pytest.fail("the model was fetched")

    monkeypatch.setitem(dpi.load.__globals__["SHORT_NAMES"], "smollm2-135m", fetches)
    _refused("local_window = 64 must be", "smollm2-135m", None, "dpi", {"local_window": 64}, max_position_embeddings=64)
    _refused("dtype is", "smollm2-135m", None, "dpi", {}, dtype="half")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(None, torch.float32), ("bfloat16", torch.bfloat16), (torch.float64, torch.float64), ("float16", torch.float16)],
)
def test_dtype_on_a_cpu(folder: Path, dtype: Any, expected: torch.dtype) -> None:
    """fp32 unless told otherwise, whatever the weights were saved in."""
    model, _ = dpi.get_model_and_tokenizer(str(folder), None, "repro_se", SE, dtype=dtype, device="cpu")
    assert {p.dtype for p in model.parameters()} == {expected}
    assert not model.training


@pytest.mark.gpu
def test_dtype_on_a_gpu(folder: Path) -> None:
    model, _ = dpi.get_model_and_tokenizer(str(folder), None, "repro_se", SE)
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.bfloat16, "cuda")}


def test_the_tokenizer_can_make_left_padded_batches(folder: Path) -> None:
    _, tokenizer = dpi.get_model_and_tokenizer(str(folder), None, "repro_se", SE, device="cpu")
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id == 2


def test_each_module_has_its_stock_attention(folder: Path) -> None:
    """Materialised attention also within the window."""
    ids = torch.arange(3, 12)[None]
    for module, layers in ((dpi, 0), (dpi_withoutflash, 1)):
        model, _ = module.get_model_and_tokenizer(str(folder), None, "repro_original", {}, device="cpu")
        attentions = model(ids, output_attentions=True).attentions
        assert len([p for p in attentions if p is not None]) == layers


def test_one_config_object_serves_two_models(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    ids = (torch.arange(90) % 29 + 2)[None]
    methods = [("repro_se", SE), ("repro_yarn", {"factor": 4.0})]
    alone = []
    for method, params in methods:
        model, _ = dpi.get_model_and_tokenizer(str(folder), None, method, params, device="cpu")
        alone.append(model(ids).logits)
    models = [dpi.get_model_and_tokenizer(str(folder), config, m, p, device="cpu")[0] for m, p in methods]
    for model, expected, (method, _) in zip(models, alone, methods, strict=True):
        assert torch.equal(model(ids).logits, expected)
        found = installed_method(model)
        assert found is not None
        assert found.name == method


def _window(model: PreTrainedModel) -> int:
    installation = installation_of(model)
    assert installation is not None
    return installation.rope.window


def test_the_window_of_the_configuration_is_the_default(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    config.max_position_embeddings = 24
    for options, window in (({}, 64), ({"max_position_embeddings": 40}, 40)):
        model, _ = dpi.get_model_and_tokenizer(str(folder), None, "repro_se", SE, device="cpu", **options)
        assert _window(model) == window
    model, _ = dpi.get_model_and_tokenizer(str(folder), config, "repro_se", SE, device="cpu")
    assert _window(model) == 24


def test_validate_method_says_the_same(folder: Path) -> None:
    dpi.validate_method("repro_se", SE, 64, 160)
    with pytest.raises(ValueError, match="reaches 160 tokens"):
        dpi.validate_method("repro_se", SE, 64, 161)


@pytest.mark.parametrize(("said", "options"), [(None, {}), ("no route", {"local_files_only": True})])
def test_a_hub_id_is_left_to_transformers_or_the_cache(
    monkeypatch: pytest.MonkeyPatch, said: str | None, options: dict[str, Any]
) -> None:
    monkeypatch.setattr("models.hub.silence", lambda: said)
    source = resolve("owner/name")
    assert (source.folder, source.options) == ("owner/name", options)
    assert resolve("owner/name", "v1").options == {**options, "revision": "v1"}


def test_a_revision_is_for_models_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tiny", str(folder)):
        with pytest.raises(ValueError, match=rf"model_revision = 'v1' is for models of the hub, and '{name}' is none"):
            dpi.get_model_and_tokenizer(name, None, "repro_original", {}, revision="v1")
    asked: list[object] = []

    def from_pretrained(name: str, **options: object) -> AutoConfig:
        asked.append(options["revision"])
        raise OSError("nothing there")

    monkeypatch.setattr("models.hub.silence", lambda: None)
    monkeypatch.setattr("models.DPI.loading.AutoConfig.from_pretrained", from_pretrained)
    for module in (dpi, dpi_withoutflash):
        with pytest.raises(OSError, match="nothing there"):
            module.get_model_and_tokenizer("owner/name", None, "repro_original", {}, device="cpu", revision="v1")
    assert asked == ["v1", "v1"]


def test_the_commit_of_a_model_is_read_off_its_place_in_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Configurations of transformers 5.23 do not carry it."""
    commit = "3" * 40
    snapshot = tmp_path / "models--a--b" / "snapshots" / commit
    shutil.copytree(folder, snapshot)
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text(commit)
    offline = {"local_files_only": True}
    monkeypatch.setattr(loading, "cached_file", functools.partial(loading.cached_file, cache_dir=str(tmp_path)))
    assert loading.commit_of(Source("a/b", offline)) == commit
    assert loading.commit_of(Source("a/c", offline)) is None
    assert loading.commit_of(Source(str(snapshot))) is None  # a folder, wherever it lies


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in folder.iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(LlamaForCausalLM(AutoConfig.from_pretrained(folder)).state_dict(), tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("a pickle was read"))
    with pytest.raises(OSError, match="safetensors"):
        dpi.get_model_and_tokenizer(str(tmp_path), None, "repro_original", {}, device="cpu")


def test_missing_weights_are_not_random(folder: Path, tmp_path: Path) -> None:
    """transformers fills them with random numbers and says so in a log."""
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = load_file(broken / "model.safetensors")
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight"):
        del weights[name]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    for module in (dpi, dpi_withoutflash):
        with pytest.raises(
            ValueError, match=r"weights of .* lack model\.layers\.0\.self_attn\.q_proj\.weight, model\.norm"
        ):
            module.get_model_and_tokenizer(str(broken), None, "repro_original", {}, device="cpu")


@pytest.mark.parametrize("placement", [{"device_map": "auto"}, {"tp_plan": "auto"}])
def test_a_device_with_a_placement(folder: Path, placement: dict[str, str]) -> None:
    for module in (dpi, dpi_withoutflash):
        with pytest.raises(ValueError, match=r"device = 'cpu' goes with neither device_map nor tp_plan"):
            module.get_model_and_tokenizer(str(folder), None, "repro_original", {}, device="cpu", **placement)


@pytest.mark.parametrize("model_type", ["llava", "qwen2_audio", "mllama"])
def test_families_without_a_window_of_their_own(folder: Path, model_type: str) -> None:
    """Their text part has it, in a configuration within."""
    config = AutoConfig.for_model(model_type)
    assert not hasattr(config, "max_position_embeddings")
    for options in ({}, {"max_position_embeddings": 64}):
        with pytest.raises(ValueError, match=rf"model_type .*'{model_type}'"):
            dpi.get_model_and_tokenizer(str(folder), config, "repro_original", {}, device="cpu", **options)


@pytest.mark.parametrize("module", [dpi, dpi_withoutflash])
def test_a_shard_index_that_names_a_pickle_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    for path in folder.glob("*.json"):
        shutil.copy(path, tmp_path)
    weights = LlamaForCausalLM(AutoConfig.from_pretrained(folder)).state_dict()
    torch.save(weights, tmp_path / "a.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "a.bin")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("a pickle was read"))
    with pytest.raises(ValueError, match=r"index\.json names 'a\.bin', which is no safetensors file"):
        module.get_model_and_tokenizer(str(tmp_path), None, "repro_original", {}, device="cpu")


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "[" * 100_000, "{}"])
def test_a_shard_index_of_another_shape_is_refused(folder: Path, tmp_path: Path, content: str) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    _refused("is no index of weights", str(tmp_path), None, "repro_original", {}, device="cpu")


FOREIGN = """from pathlib import Path
from transformers import LlamaConfig

Path({marker!r}).write_text("ran")


class Foreign(LlamaConfig):
    pass
"""


@pytest.fixture
def foreign_code(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A model folder whose configuration is Python of its own, and the file that this writes when it runs."""
    model, marker = tmp_path / "foreign", tmp_path / "marker"
    shutil.copytree(folder, model)
    written = json.loads((model / "config.json").read_text())
    written |= {"model_type": "of_its_own", "auto_map": {"AutoConfig": "foreign.Foreign"}}
    (model / "config.json").write_text(json.dumps(written))
    (model / "foreign.py").write_text(FOREIGN.format(marker=str(marker)))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return model, marker


@pytest.mark.parametrize("module", [dpi, dpi_withoutflash])
def test_a_models_own_python_does_not_run(foreign_code: tuple[Path, Path], module: Any) -> None:
    """Also where someone would answer transformers' question with yes."""
    model, marker = foreign_code
    with pytest.raises(ValueError, match="trust_remote_code"):
        module.get_model_and_tokenizer(str(model), None, "repro_original", {}, device="cpu")
    assert not marker.exists()


def test_a_models_own_python_runs_where_it_is_trusted(foreign_code: tuple[Path, Path]) -> None:
    model, marker = foreign_code
    with pytest.raises(ValueError, match="model_type is 'of_its_own'"):  # no method knows what it is
        dpi.get_model_and_tokenizer(str(model), None, "repro_original", {}, device="cpu", trust_remote_code=True)
    assert marker.exists()


def test_every_part_of_a_model_is_told_not_to_trust(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    for kind in (AutoConfig, AutoModelForCausalLM, AutoTokenizer):
        real = kind.from_pretrained

        def read(*args: Any, real: Any = real, **options: Any) -> Any:
            told.append(options.get("trust_remote_code"))
            return real(*args, **options)

        monkeypatch.setattr(kind, "from_pretrained", read)
    dpi.get_model_and_tokenizer(str(folder), None, "repro_original", {}, device="cpu")
    assert told[:3] == [False] * 3


@pytest.mark.timeout(60)
def test_layers_without_end_are_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        shutil.copy(file, tmp_path / file.name)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 100_000_000}))
    with pytest.raises(ValueError, match="num_hidden_layers = 100000000 must be at most 10000"):
        dpi.get_model_and_tokenizer(str(tmp_path), None, "repro_original", {})
