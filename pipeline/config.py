"""Experiment configurations: TOML files with overrides, validated by pydantic.

Keys keep the names that the paper's configurations use (`max_pe` is the target length, `ori_max_position_embeddings`
the window). Unknown keys are refused by name with the nearest known one. Every mistake is a `UserError` of one line.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tasks import canonical_task_name
from tasks.errors import UserError

Positive = Annotated[int, Field(gt=0, strict=True)]
Thousands = Annotated[float, Field(gt=0, allow_inf_nan=False)]

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

# Keys that may differ between two runs of one experiment: they choose records, hardware or memory, not predictions.
RESUMABLE_KEYS = frozenset({"test", "tasks", "limit", "stride", "device", "device_map", "tp_plan"})


class ExperimentConfig(BaseModel):
    """One experiment: a model, a method with its parameters, and a benchmark with its settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, description="Hugging Face id, local folder, or short name")
    exp_name: str = Field(description="name of the results folder")
    method: str = Field(description="dpi, repro_se, repro_chunkllama, repro_ntk, repro_dynamic_ntk, repro_yarn, ...")
    params: dict[str, Any] = Field(default_factory=dict, description="the method's parameters")
    task: str = Field(description="longbench, longbench_e, leval, pg19, needle or passkey_retrieval")
    max_pe: Positive = Field(description="target length in tokens")
    ori_max_position_embeddings: Positive | None = Field(None, description="the window; None: the model's own")
    test: Annotated[bool, Field(strict=True)] = Field(False, description="quick run: one record of the first data set")

    tasks: tuple[str, ...] = Field((), description="data sets to run; empty: the benchmark's usual ones")
    limit: Positive | None = Field(None, description="at most this many records a data set")
    data_dir: Path | None = Field(None, description="folder with the benchmark's data; None: from the hub")
    seed: Annotated[int, Field(ge=0, strict=True)] = 42
    system_prompt: str | None = Field(None, description="system prompt of chat templates; None: no system prompt")
    chat: Literal["auto", "none"] = Field("auto", description="auto: the tokenizer's chat template, if it has one")
    max_new_tokens: Positive | None = Field(None, description="None: the benchmark's own")

    stride: Positive = Field(2000, description="pg19: hidden states per logits slice; bounds memory, changes no result")
    step: Positive = Field(1024, description="pg19: perplexity at every so many tokens")
    times: Positive = Field(20, description="needle, passkey_retrieval: trials")
    min_k: Thousands = Field(1, description="needle: shortest prompt, thousands of tokens")
    max_k: Thousands | None = Field(None, description="needle: longest prompt; None: what fits max_pe")
    gap: Thousands = Field(4, description="needle: step between lengths")
    haystack: Literal["passkey", "essays"] = Field("passkey", description="needle: garbage text, or essays in data_dir")
    needle: Literal["auto", "passkey", "sandwich"] = Field("auto", description="auto: the haystack's published one")
    lengths: tuple[Thousands, ...] = Field((), description="needle: these lengths instead, thousands of tokens")
    depths: Positive = Field(16, description="needle: places of the needle, evenly spread, the last at the end")
    n_garbage: Positive | None = Field(None, description="passkey_retrieval: characters of garbage")

    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(None, description="None: bf16 on GPU, fp32 on CPU")
    device: str | None = None
    attn_impl: str = "auto"
    device_map: str | dict[str, int | str] | None = None
    tp_plan: str | None = None

    @field_validator("exp_name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        return check_exp_name(value)

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str) -> str:
        try:
            return canonical_task_name(value)
        except UserError as error:
            raise ValueError(str(error)) from None

    @field_validator("dtype", mode="before")
    @classmethod
    def _short_dtype(cls, value: Any) -> Any:
        return DTYPES.get(value, value) if isinstance(value, str) else value

    @field_validator("data_dir")
    @classmethod
    def _home(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value is not None else None

    @field_validator("min_k", "max_k", "gap", "lengths", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, bool | str):
                raise ValueError(f"must be a number, not {item!r}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentConfig:
        if self.max_k is not None and self.max_k < self.min_k:
            raise ValueError(f"max_k = {self.max_k:g} is less than min_k = {self.min_k:g}")
        if self.task == "passkey_retrieval" and self.n_garbage is None:
            raise ValueError("n_garbage is missing; passkey_retrieval needs it (characters of garbage, such as 60000)")
        if self.haystack == "essays" and self.task == "needle" and self.data_dir is None:
            raise ValueError("data_dir is missing; haystack = 'essays' needs a folder of *.txt files")
        if self.device_map is not None and self.tp_plan is not None:
            raise ValueError("device_map and tp_plan exclude each other; give one of them")
        return self

    def resumable_form(self) -> dict[str, Any]:
        """What must be equal for a run to go on where another stopped, as JSON values."""
        return {key: value for key, value in self.model_dump(mode="json").items() if key not in RESUMABLE_KEYS}


def check_exp_name(name: str) -> str:
    """The name itself if it stays inside the results folder. Raises `ValueError` otherwise."""
    if not re.fullmatch(r"[^\W_][\w.+=,@ -]{0,199}", name) or name == "all":
        raise ValueError(
            f"exp_name {name!r} cannot be a folder's name: a letter or digit, then up to 199 letters, digits, blanks"
            " and _ . + = , @ - (and not 'all')"
        )
    return name


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises `UserError` if it is missing or broken."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} is not valid TOML: {error}") from None


def apply_overrides(content: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of a configuration with `key=value` overrides applied; `params.key` reaches into the parameters.

    Values are TOML; what is no TOML value is taken as a string, so that `method=repro_se` needs no quotes.
    """
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in content.items()}
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)?", key):
            raise UserError(f"--set {override!r} is not of the form key=value")
        head, _, tail = key.partition(".")
        if not tail:
            result[head] = _parse_value(text)
        elif isinstance(result.setdefault(head, {}), dict):
            result[head][tail] = _parse_value(text)
        else:
            raise UserError(f"--set {override!r}: {head!r} is not a table")
    return result


def _parse_value(text: str) -> Any:
    """A TOML value, or the text itself."""
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return text.strip()


def build_config(content: Mapping[str, Any], source: str) -> ExperimentConfig:
    """Validate a configuration; `source` names it in errors. Raises `UserError`."""
    try:
        return ExperimentConfig.model_validate(dict(content))
    except ValidationError as error:
        raise UserError(f"{source}: {describe(error)}") from None


def describe(error: ValidationError, model: type[BaseModel] = ExperimentConfig) -> str:
    """Pydantic's first complaints about `model` as one line that names keys and values."""
    return "; ".join(_describe_one(item, model) for item in error.errors()[:3])


def _describe_one(item: Mapping[str, Any], model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, model.model_fields, n=1)
        return f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    if item["type"] == "missing":
        return f"the key {key!r} is missing"
    if item["type"] == "value_error":
        message = str(item["ctx"]["error"])
        return message if not key or key in message or key == "task" else f"{key}: {message}"
    return f"{key} = {item['input']!r}: {item['msg']}"
