"""What an experiment would do, before it does it: records, prompt lengths, memory, time.

Whatever would keep the run from its first record ends this as it would end the run, by the same checks
(`pipeline.checks.check_start`, `pipeline.experiment.read_experiment`). Weights are loaded only to measure time,
and only small ones that lie on this machine.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.DPI.loading import DTYPES, default_dtype
from pipeline import store, timing
from pipeline.automatic import WINDOW, begun_with, settle
from pipeline.checks import Start, check_requests, check_start, without_devices
from pipeline.config import ExperimentConfig, source_of
from pipeline.distributed import Workers
from pipeline.experiment import (
    check_model_revision,
    check_place,
    check_resumable,
    read_experiment,
    read_records,
    with_model_revision,
)
from pipeline.model_files import UnreachableModelError, read_tokenizer
from pipeline.model_loader import EngineLoader, engine_key
from pipeline.text import plain_table, printable
from tasks import get_task
from tasks.base import Record
from tasks.errors import said_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

T = TypeVar("T")

MOST_PROMPTS = 128
"""Prompts that are tokenised per data set; of larger ones, this many at even distances."""

GIB = 2**30
MOST_WEIGHTS = 2 * GIB
"""Bytes of weights that are loaded to measure time: seconds from a disk. Larger ones would make a dry run a wait."""
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class PromptCount:
    """A data set's record count, and the token lengths of the prompts that were tokenised."""

    name: str
    records: int
    prompt_tokens: list[int]


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device for a batch of one.

    weights; cache: keys and values of all layers; activations: the largest layer's intermediate values.
    """

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        """Of all three."""
        return self.weights + self.cache + self.activations


@dataclass(frozen=True)
class Preview:
    """What one experiment would do. prompt: one of its prompts. seconds: None where time is not estimated."""

    cfg: ExperimentConfig
    counts: list[PromptCount]
    seconds: float | None

    @property
    def records(self) -> int:
        """Of all data sets."""
        return sum(count.records for count in self.counts)

    @property
    def tokens(self) -> int:
        """Of all prompts, from those that were tokenised."""
        return round(sum(count.records * statistics.fmean(count.prompt_tokens) for count in self.counts))


def count_prompts(cfg: ExperimentConfig, chosen: Mapping[str, Sequence[Record]]) -> tuple[list[PromptCount], list[int]]:
    """Records and prompt lengths of every data set of an experiment, and its longest prompt."""
    task = get_task(cfg.task)
    tokenizer = read_tokenizer(cfg.model, cfg.model_revision, trust_remote_code=cfg.trust_remote_code)
    counts: list[PromptCount] = []
    longest: list[int] = []
    for dataset, records in chosen.items():
        lengths = []
        for record in sample(records):
            ids = task.prompt(cfg.options, dataset, record, tokenizer)
            lengths.append(len(ids))
            longest = max(longest, ids, key=len)
        counts.append(PromptCount(dataset, len(records), lengths))
    return counts, longest


def sample(records: Sequence[T]) -> list[T]:
    """All records, or `MOST_PROMPTS` of them at even distances, the first and the last included."""
    if len(records) <= MOST_PROMPTS:
        return list(records)
    return [records[i * (len(records) - 1) // (MOST_PROMPTS - 1)] for i in range(MOST_PROMPTS)]


def estimate_memory(config: PreTrainedConfig, tokens: int, bytes_per_number: int) -> MemoryEstimate:
    """An estimate for one input of `tokens` tokens; attention itself is O(n) and small beside these."""
    from transformers import AutoModelForCausalLM

    from pipeline.engine import bytes_per_token

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    parameters = sum(p.numel() for p in model.parameters())
    cache, activations = bytes_per_token(config, bytes_per_number)
    return MemoryEstimate(parameters * bytes_per_number, cache * tokens, activations * tokens)


def quantiles(lengths: Sequence[int]) -> list[int]:
    """Minimum, quartiles and maximum."""
    if len(lengths) == 1:
        return [lengths[0]] * len(QUANTILES)
    inner = statistics.quantiles(lengths, n=4, method="inclusive")
    return [min(lengths), *(round(value) for value in inner), max(lengths)]


def preview(
    cfg: ExperimentConfig, results: Path, load: EngineLoader, console: Console, *, overwrite: bool, elsewhere: bool
) -> Preview:
    """Check one experiment as its run would, and print what it would do. Raises `UserError` as the run would.

    elsewhere: see `dry_run`.
    """
    cfg = with_model_revision(cfg, results, overwrite=overwrite)
    judged = without_devices(cfg) if elsewhere else cfg
    judged, automatic = settle(judged, results, Workers(), overwrite=overwrite, measure=False)
    start = load.check(judged)
    if elsewhere:
        cfg = cfg.model_copy(update={"options": judged.options, "params": judged.params})  # with settled numbers
        start = replace(start, dtype=DTYPES[cfg.dtype] if cfg.dtype else default_dtype(cfg.device or "cuda"))
    else:
        cfg = judged
    folder, cfg, chosen = read_experiment(cfg, results, overwrite=overwrite)
    if not overwrite:
        check_model_revision(folder, cfg, start.revision)
    counts, longest = count_prompts(cfg, chosen)
    _say(
        console,
        f"{cfg.exp_name}: {cfg.task} with {cfg.method} on {cfg.model}, window W {start.window:,}, "
        f"target {cfg.options.max_pe:,} tokens",
    )
    if automatic is not None and automatic["calibration"] is None and WINDOW in automatic["found"]:
        _say(console, "the window is auto: a run measures it first, and W is at most what stands here")
    console.print(_prompt_table(counts, start.window))
    counted = sum(len(count.prompt_tokens) for count in counts)
    records = sum(count.records for count in counts)
    if counted < records:
        _say(console, f"lengths in tokens, of {counted:,} prompts at even distances among the {records:,}")
    if cfg.engine != "transformers":
        if cfg.base_url is not None:
            load(cfg)
            _say(console, f"the server at {cfg.base_url} runs this")
        _say(console, "memory and time are vLLM's, and not estimated")
        return Preview(cfg, counts, None)
    memory = estimate_memory(start.config, len(longest), start.dtype.itemsize)
    dtype = str(start.dtype).removeprefix("torch.")
    _say(
        console,
        f"memory for {len(longest):,} tokens in {dtype}: about {memory.total / GIB:.2f} GiB\n"
        f"  weights {memory.weights / GIB:.2f}, keys and values {memory.cache / GIB:.2f}, "
        f"activations {memory.activations / GIB:.2f}",
    )
    if elsewhere:
        _say(console, "time: not estimated, as other machines run this")
        return Preview(cfg, counts, None)
    return Preview(cfg, counts, _show_time(cfg, start, memory, counts, longest, load, console))


def _prompt_table(counts: Sequence[PromptCount], window: int) -> Table:
    table = plain_table("data set", "records", "min", "25 %", "median", "75 %", "max", "> W")
    for count in counts:
        beyond = sum(length > window for length in count.prompt_tokens) / len(count.prompt_tokens)
        cells = [f"{value:,}" for value in quantiles(count.prompt_tokens)]
        table.add_row(escape(printable(count.name)), f"{count.records:,}", *cells, f"{beyond:.0%}")
    return table


def _show_time(
    cfg: ExperimentConfig,
    start: Start,
    memory: MemoryEstimate,
    counts: Sequence[PromptCount],
    longest: Sequence[int],
    load: EngineLoader,
    console: Console,
) -> float | None:
    """Print how long the run will take; returns it in seconds, None where weights are not at hand to measure with."""
    if not start.local:
        _say(console, "time: not estimated, as the weights would have to come from the hub")
        return None
    if memory.weights > MOST_WEIGHTS:
        _say(console, f"time: not estimated, as the weights are more than {MOST_WEIGHTS / GIB:g} GiB")
        return None
    engine: Any = load(cfg)
    model: Any = engine.model
    speed = timing.measure(model, longest)
    task = get_task(cfg.task)
    prompts, generation = timing.estimate(
        speed,
        timing.work_of(model),
        {count.name: (count.records, count.prompt_tokens) for count in counts},
        {count.name: task.most_new_tokens(cfg.options, count.name) for count in counts},
    )
    new = f", new tokens {timing.duration(generation)} at most" if generation else ""
    _say(
        console,
        f"time in one process here: {timing.duration(prompts + generation)}\n"
        f"  prompts {timing.duration(prompts)}{new}\n"
        f"  from {speed.tokens:,} tokens and {timing.NEW_TOKENS} new ones, measured in {speed.seconds:.1f} s",
    )
    return prompts + generation


def show_totals(previews: Sequence[Preview], console: Console) -> None:
    """Print what the experiments of each benchmark come to."""
    table = plain_table("task", "experiments", "records", "prompt tokens", "time")
    for task in dict.fromkeys(found.cfg.task for found in previews):
        its = [found for found in previews if found.cfg.task == task]
        known = [found.seconds for found in its if found.seconds is not None]
        time = timing.duration(sum(known)) if len(known) == len(its) else "-"
        tokens, records = sum(found.tokens for found in its), sum(found.records for found in its)
        table.add_row(task, f"{len(its):,}", f"{records:,}", f"{tokens:,}", time)
    console.print(table)


def dry_run(
    experiments: Sequence[ExperimentConfig],
    results: Path,
    console: Console,
    path: Path,
    *,
    overwrite: bool = False,
    elsewhere: bool = False,
) -> None:
    """Print what each experiment would do, and totals by benchmark where there are several. Raises `UserError`.

    path: the file that they come from. elsewhere: whether the machines of a cluster would run them, whose devices
    this one does not know.
    """
    check_requests(experiments, path, elsewhere=elsewhere)
    load = EngineLoader(Workers())
    previews = []
    for cfg in experiments:
        with said_of(source_of(cfg, experiments, path)):
            previews.append(preview(cfg, results, load, console, overwrite=overwrite, elsewhere=elsewhere))
        console.print()
    if len(previews) > 1:
        show_totals(previews, console)


def list_experiments(
    experiments: Sequence[ExperimentConfig],
    results: Path,
    console: Console,
    path: Path,
    *,
    overwrite: bool = False,
    elsewhere: bool = False,
) -> None:
    """Print the experiments of a sweep and how many each benchmark has, then check all that their runs would.

    Data of the hub are not fetched. Models of the hub are listed without a check where it does not answer and the cache
    does not have them. path: the file. elsewhere: see `dry_run`. Raises `UserError`.
    """
    check_requests(experiments, path, elsewhere=elsewhere)
    _show_experiments(experiments, console)
    read: set[object] = set()
    configs: dict[object, PreTrainedConfig | None] = {}
    for cfg in experiments:
        with said_of(source_of(cfg, experiments, path)):
            _check_listed(cfg, results, read, configs, overwrite=overwrite, elsewhere=elsewhere)
    if unreachable := dict.fromkeys(cfg.model for cfg in experiments if configs.get(_model_key(cfg), ...) is None):
        _say(console, f"not checked, as the hub does not answer: {', '.join(unreachable)}")


def _model_key(cfg: ExperimentConfig) -> object:
    return cfg.model, cfg.model_revision, cfg.trust_remote_code


def _check_listed(
    cfg: ExperimentConfig,
    results: Path,
    read: set[object],
    configs: dict[object, PreTrainedConfig | None],
    *,
    overwrite: bool,
    elsewhere: bool,
) -> None:
    """Check an experiment as its run would. read: what needs no second look. configs: of models, None: out of reach."""
    task = get_task(cfg.task)
    folder = store.experiment_folder(results, task, cfg.exp_name)
    check_place(folder)
    if not overwrite:
        check_resumable(folder, task, begun_with(cfg, results))
    data = (cfg.task, cfg.tasks, cfg.limit, cfg.test, cfg.options.data_dir)
    if cfg.options.data_dir is not None and data not in read:
        read_records(task, cfg)
        read.add(data)
    cfg = without_devices(cfg) if elsewhere else cfg
    key, engine = _model_key(cfg), engine_key(cfg)
    if engine in read or configs.get(key, ...) is None:
        return
    try:
        configs[key] = check_start(cfg, config=configs.get(key)).config
    except UnreachableModelError:
        configs[key] = None
    read.add(engine)


def _show_experiments(experiments: Sequence[ExperimentConfig], console: Console) -> None:
    for model in dict.fromkeys(cfg.model for cfg in experiments):
        _say(console, model)
        table = plain_table("experiment", "window", "target", "tasks")
        its = [cfg for cfg in experiments if cfg.model == model]
        for name in dict.fromkeys(cfg.exp_name for cfg in its):
            same = [cfg for cfg in its if cfg.exp_name == name]
            window = same[0].options.ori_max_position_embeddings
            cells = (
                name,
                f"{window:,}" if isinstance(window, int) else window or "model's",
                f"{same[0].options.max_pe:,}",
                str(len(same)),
            )
            table.add_row(*(escape(printable(cell)) for cell in cells))
        console.print(table)
        console.print()
    for method in dict.fromkeys(cfg.method for cfg in experiments):
        _say(console, f"{method}: {_params_of(method, experiments)}")
    console.print()
    table = plain_table("task", "experiments")
    for task, count in Counter(cfg.task for cfg in experiments).items():
        table.add_row(task, f"{count:,}")
    console.print(table)
    console.print(f"{len(experiments):,} experiments; --only NAME --dry-run shows records, memory and time")


def _params_of(method: str, experiments: Sequence[ExperimentConfig]) -> str:
    """A method's parameters, each with the values that experiments give it."""
    values: dict[str, dict[str, None]] = {}
    for cfg in experiments:
        for key, value in cfg.params.items() if cfg.method == method else ():
            values.setdefault(key, {})[str(value)] = None
    return ", ".join(f"{key}={'|'.join(found)}" for key, found in values.items()) or "its own parameters"


def _say(console: Console, text: str) -> None:
    console.print(printable(text, keep="\n"), highlight=False, markup=False)
