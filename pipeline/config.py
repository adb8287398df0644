"""Experiment configurations: TOML files with overrides, validated by pydantic.

A file is flat: keys that say how a run is made (`ExperimentConfig`) stand beside those that the benchmark reads
(`Task.Options`), under the names that the paper's configurations use. Unknown keys, and keys of another benchmark, are
refused by name. Every mistake is a `UserError` of one line.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from models.mistakes import complaints as complaints_of
from models.mistakes import did_you_mean
from pipeline.client import check_base_url
from tasks import canonical_task_name, get_task, task_names
from tasks.base import Task
from tasks.errors import UserError
from tasks.options import Options, Positive
from tasks.reading import read_regular

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

MOST_COMPLAINTS = 3
MOST_BYTES = 1 << 17
"""Of a configuration."""
MOST_LEVELS = 32
"""Of tables and lists in it."""

# For a key of thousands of parts (a.a.a. ...) Python's parser takes hours.
_TEXTS = re.compile(r"""\"{3}(?:\\.|[^\\])*?\"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|\#[^\n]*""", re.DOTALL)
_LONG_KEY = re.compile(rf"(?<![\w-])(?:[\w-]+[ \t]*\.[ \t]*){{{MOST_LEVELS}}}")

# Keys that may differ between two runs of one experiment: they choose records, hardware or memory, not predictions.
# The commits of hub data and models are compared by what they stand for (`pipeline/experiment.py`).
RESUMABLE_KEYS = frozenset(
    {
        "test",
        "tasks",
        "limit",
        "batch_size",
        "device",
        "device_map",
        "tp_plan",
        "data_revision",
        "model_revision",
        "share_prefixes",
        "tracker",
        "base_url",
        "vllm",
    }
)


def _known_task(name: str) -> str:
    try:
        return canonical_task_name(name)
    except UserError as error:
        raise ValueError(str(error)) from None


TaskName = Annotated[str, AfterValidator(_known_task)]
"""A benchmark's name, with aliases resolved."""


VllmOption = Literal[
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "distributed_executor_backend",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size",
    "enable_prefix_caching",
    "enforce_eager",
]
"""Arguments of `vllm.LLM` that say where and in how much memory a model runs. All others are decided elsewhere."""


class ExperimentConfig(BaseModel):
    """One experiment: a model, a method with its parameters, and a benchmark with its options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, description="Hugging Face id, local folder, or short name")
    model_revision: str | None = Field(
        None, min_length=1, description="commit, tag or branch of a model of the hub; without it the newest"
    )
    exp_name: str = Field(description="name of the results folder")
    method: str = Field(description="the method's name, such as dpi or repro_se")
    params: dict[str, Any] = Field(default_factory=dict, description="the method's parameters")
    task: TaskName = Field(description="the benchmark's name, such as longbench or needle")
    test: Annotated[bool, Field(strict=True)] = Field(False, description="quick run: one record of the first data set")
    tasks: tuple[str, ...] = Field((), description="data sets to run; empty: the benchmark's usual ones")
    limit: Positive | None = Field(None, description="at most this many records per data set")

    # 1 by default: in bf16 the rounding of a batch is not that of a record alone, and published numbers are of these.
    batch_size: int | Literal["auto"] = Field(1, description="records generated together; auto: by GPU memory")
    # As with batches, not by itself in bf16, where rounding is another.
    share_prefixes: bool | Literal["auto"] = Field(
        "auto", description="read once what consecutive prompts begin with; auto: causal methods in fp32"
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="without it bf16 on a GPU, fp32 on a CPU"
    )
    device: str | None = Field(None, description="cpu, cuda, cuda:0, ...; without it a GPU if there is one")
    attn_impl: str = Field("auto", description="how attention is computed: auto, triton, flash, sdpa, reference")
    device_map: str | dict[str, int | str] | None = Field(None, description="auto: a model over several GPUs")
    tp_plan: str | None = Field(None, description="auto: a model in pieces over the processes of torchrun")
    trust_remote_code: Annotated[bool, Field(strict=True)] = Field(False, description="run a model's own Python files")
    engine: Literal["transformers", "openai", "vllm"] = Field(
        "transformers", description="what runs the model; vllm, with this project's plug-in; openai: a server of it"
    )
    base_url: str | None = Field(None, description="of engine openai, such as http://127.0.0.1:8000/v1")
    served_model: str | None = Field(
        None, min_length=1, description="what that server was told as --model, if not the folder or id of `model`"
    )
    vllm: dict[VllmOption, Any] = Field(default_factory=dict, description="of engine vllm: arguments of vllm.LLM")
    tracker: Literal["trackio", "wandb"] | None = Field(None, description="trackio, wandb: where progress is sent to")

    options: SerializeAsAny[Options] = Field(description="the benchmark's own, an instance of its `Options`")

    @field_validator("exp_name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        return check_exp_name(value)

    @field_validator("batch_size", mode="before")
    @classmethod
    def _records_or_auto(cls, value: Any) -> Any:
        if value != "auto" and (type(value) is not int or value < 1):
            raise ValueError(f"batch_size = {value!r} must be a number of records, 1 or more, or 'auto'")
        return value

    @field_validator("share_prefixes", mode="before")
    @classmethod
    def _wanted_or_auto(cls, value: Any) -> Any:
        if value != "auto" and not isinstance(value, bool):
            raise ValueError(f"share_prefixes = {value!r} must be true, false or 'auto'")
        return value

    @field_validator("base_url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        return None if value is None else check_base_url(value)

    @field_validator("dtype", mode="before")
    @classmethod
    def _short_dtype(cls, value: Any) -> Any:
        return DTYPES.get(value, value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _of_the_engine(self) -> ExperimentConfig:
        owners = {"base_url": "openai", "served_model": "openai", "vllm": "vllm"}
        for name, owner in owners.items():
            if (value := getattr(self, name)) and self.engine != owner:
                raise ValueError(f"{name} = {value!r} is for engine = {owner!r}; set that, or leave it out")
        if self.engine == "transformers":
            return self
        if self.engine == "openai" and self.base_url is None:
            raise ValueError("engine = 'openai' needs base_url, such as http://127.0.0.1:8000/v1")
        for name in ("device", "device_map", "tp_plan", "attn_impl", "share_prefixes"):
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                raise ValueError(f"{name} = {value!r} is not decided here with engine = {self.engine!r}; leave it out")
        if self.options.ori_max_position_embeddings == "auto":
            raise ValueError("ori_max_position_embeddings = 'auto' is for engine = 'transformers'; give a number")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentConfig:
        if self.device_map is not None and self.tp_plan is not None:
            raise ValueError("device_map and tp_plan exclude each other; give one of them")
        if self.share_prefixes is True and self.batch_size != 1:
            raise ValueError(
                f"share_prefixes = true is for single records, and batch_size = {self.batch_size!r}; set batch_size = 1"
            )
        return self

    def flat(self) -> dict[str, Any]:
        """Keys and JSON values side by side, as a TOML file and a run record have them."""
        return {**self.model_dump(mode="json", exclude={"options"}), **self.options.model_dump(mode="json")}

    def may_change(self) -> frozenset[str]:
        """The keys that may differ between two runs of this experiment."""
        return RESUMABLE_KEYS | self.options.may_change

    def resumable_form(self) -> dict[str, Any]:
        """What must be equal for a run to go on where another stopped, as JSON values."""
        return {key: value for key, value in self.flat().items() if key not in self.may_change()}


RUN_KEYS = frozenset(ExperimentConfig.model_fields) - {"options"}
"""The keys that say how a run is made; all others are the benchmark's."""


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
        return _parse_toml(read_regular(path, MOST_BYTES).decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and deep nesting
        raise UserError(f"{str(path)!r} is not valid TOML: {error}") from None


def _parse_toml(text: str) -> dict[str, Any]:
    """A TOML document. Raises `ValueError`, as TOML wants it for integers beyond 64 bits, `RecursionError`."""
    deep = ValueError(f"tables and lists are nested deeper than {MOST_LEVELS}")
    if _LONG_KEY.search(_TEXTS.sub("x", text)):
        raise deep
    content = tomllib.loads(text)
    level: list[Any] = [content]
    for _ in range(MOST_LEVELS):
        if any(isinstance(item, int) and item.bit_length() > 63 for item in level):
            raise ValueError("an integer has more than 64 bits")
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return content
    raise deep


def apply_overrides(content: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of a configuration with `key=value` overrides applied; `params.key` reaches into a table.

    Values are TOML; what is no TOML value is taken as a string, so that `method=repro_se` needs no quotes.
    """
    result = copy.deepcopy(dict(content))
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
            raise UserError(f"--set {override!r} is not of the form key=value")
        *tables, last = key.split(".")
        place = result
        for name in tables:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise UserError(f"--set {override!r}: {name!r} is not a table")
        place[last] = _parse_value(text)
    return result


def _parse_value(text: str) -> Any:
    """A TOML value, or the text itself."""
    try:
        return _parse_toml(f"value = {text.strip()}")["value"]
    except (ValueError, KeyError, RecursionError):
        return text.strip()


def source_of(cfg: ExperimentConfig, experiments: Sequence[ExperimentConfig], path: Path) -> str:
    """How errors name the file that an experiment comes from, and which of several it is."""
    return str(path) if len(experiments) == 1 else f"{path}: {cfg.exp_name}"


def build_config(content: Mapping[str, Any], source: str) -> ExperimentConfig:
    """Validate a flat configuration; `source` names it in errors. Raises `UserError`."""
    run = {key: value for key, value in content.items() if key in RUN_KEYS}
    options, complaints = _build_options(run.get("task"), {key: content[key] for key in content if key not in RUN_KEYS})
    try:
        cfg = ExperimentConfig.model_validate({**run, "options": options})
    except ValidationError as error:
        complaints = [*complaints_of(error), *complaints]
    if complaints:
        raise UserError(f"{source}: {'; '.join(complaints[:MOST_COMPLAINTS])}")
    return cfg


def _build_options(name: Any, content: Mapping[str, Any]) -> tuple[Options, list[str]]:
    """A benchmark's options, and what is wrong with them; then, or if nobody knows the benchmark, an empty stand-in."""
    stand_in: Options = Options.model_construct()
    try:
        task = get_task(name)
    except (TypeError, UserError):  # which the validation of the key `task` reports
        return stand_in, []
    if both := sorted(RUN_KEYS & task.Options.model_fields.keys()):
        raise TypeError(f"the options of task {task.name!r} have {both[0]!r}, a key of every run; name it anew")
    complaints = unknown_keys(task, content)
    known = {key: value for key, value in content.items() if key in task.Options.model_fields}
    try:
        return task.Options.model_validate(known), complaints
    except ValidationError as error:
        return stand_in, [*complaints, *complaints_of(error)]


def unknown_keys(task: Task, keys: Iterable[str]) -> list[str]:
    """A complaint about each key that a configuration of this task may not have."""
    known = [*RUN_KEYS, *task.Options.model_fields]
    complaints = []
    for key in keys:
        if key in known:
            continue
        if owners := _owners(key):
            belongs = f"task{'s' if len(owners) > 1 else ''} {' and '.join(owners)}, not {task.name}"
            complaints.append(f"unknown key {key!r}: it belongs to {belongs}")
        else:
            complaints.append(f"unknown key {key!r}{did_you_mean(key, known)}")
    return complaints


def without_other_tasks(content: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """A run record's configuration without keys of other benchmarks: older records hold the keys of all."""
    known = {*RUN_KEYS, *task.Options.model_fields}
    return {key: value for key, value in content.items() if key in known or not _owners(key)}


def _owners(key: str) -> list[str]:
    """The tasks that read a key."""
    return [name for name in task_names() if key in get_task(name).Options.model_fields]
