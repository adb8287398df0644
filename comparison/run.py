"""A comparison from its request to its report: what is there already is not measured again."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from comparison import storage
from comparison.probes import Item, build_items
from comparison.request import Request, Sizes, make_request, sizes_for
from comparison.results import Comparison, load
from comparison.settings import Refused, Setting, plan
from comparison.texts import Text, choosing, read_texts
from models.DPI.methods import METHODS, Method
from models.mistakes import did_you_mean
from pipeline.config import ExperimentConfig, build_config
from pipeline.distributed import Workers
from pipeline.files import write_json
from pipeline.store import Appender, lock, make_folder
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "tokenizers")
LONGEST_NAME = 40
"""Characters of a setting's label in the progress bar."""


@dataclass(frozen=True)
class Wishes:
    """What the command line says; None for what it leaves open.

    methods: names; None: all. baseline: what others are compared with; None: GALI, or the first of the methods.
    """

    model: str
    target: int
    window: int | None = None
    methods: Sequence[str] | None = None
    baseline: str | None = None
    tune: bool = False
    texts: Path | None = None
    lengths: Sequence[int] | None = None
    depths: int | None = None
    samples: int | None = None
    texts_limit: int | None = None
    dtype: str | None = None
    device: str | None = None
    attn_impl: str = "auto"
    seed: int = 42
    trust_remote_code: bool = False
    out: Path | None = None
    results: Path = Path("results")


class Session:
    """One comparison on this process."""

    def __init__(self, wishes: Wishes, workers: Workers) -> None:
        """Check all that can be checked without weights. Raises `UserError`."""
        from models.DPI.loading import check_options
        from pipeline.model_files import model_commit, read_model_config

        self._wishes = wishes
        self._workers = workers
        names = check_methods(wishes.methods)
        self.baseline = check_baseline(wishes.baseline, names)
        try:
            self._device, self._dtype = check_options(
                attn_impl=wishes.attn_impl, dtype=wishes.dtype, device=wishes.device or workers.device(),
                device_map=None, tp_plan=None,
            )  # fmt: skip
        except ValueError as error:
            raise UserError(str(error)) from None
        self._commit = model_commit(wishes.model)  # with which all else is read
        self._config = read_model_config(wishes.model, self._commit, trust_remote_code=wishes.trust_remote_code)
        window = window_of(self._config) if wishes.window is None else wishes.window
        self.request = make_request(
            model=wishes.model, window=window, target=wishes.target, methods=names, tune=wishes.tune,
            sizes=sizes_of(wishes, window, gpu=self._device.type == "cuda"), texts=wishes.texts,
            dtype=str(self._dtype).removeprefix("torch."), attn_impl=wishes.attn_impl, seed=wishes.seed,
            trust_remote_code=wishes.trust_remote_code,
        )  # fmt: skip
        self.folder = wishes.out or default_folder(wishes.results, self.request)
        self._planned, self.refused = plan(names, window, wishes.target, tune=wishes.tune, check=checker(self._config))
        own = {one.label for one in self.refused}
        lost = [METHODS[name].label for name in wishes.methods or () if name not in {s.method for s in self._planned}]
        if lost or not self._planned:
            reasons = "; ".join(one.reason for one in self.refused if not lost or one.label in lost)
            raise UserError(reasons or f"no method can run ({', '.join(sorted(own))})")
        if self.baseline not in {setting.method for setting in self._planned}:
            if wishes.baseline is not None:
                raise UserError(f"--baseline {wishes.baseline} cannot run at this window and target")
            self.baseline = self._planned[0].method
        self._model: PreTrainedModel | None = None

    def run(self) -> Comparison:
        """Measure what is missing; returns all that is there."""
        main = self._workers.is_main
        if main:
            for one in self.refused:
                logger.warning("left out, %s: %s", one.label, one.reason)
            self._prepare()
        self._workers.barrier()
        items = storage.read_items(self.folder, with_tokens=True)
        settings = storage.read_settings(self.folder)
        if self.request.tune:
            self._measure(settings, [item for item in items if item.chooses], "choosing, ")
            self._workers.barrier()
            reported = set(load(self.folder).reported())
            settings = [setting for setting in settings if setting.id in reported]
        self._measure(settings, [item for item in items if not item.chooses])
        self._workers.barrier()
        return load(self.folder)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the folder against another run."""
        if not self._workers.is_main:
            return contextlib.nullcontext()
        make_folder(self.folder)
        return lock(self.folder)

    def _prepare(self) -> None:
        """Write what a comparison begins with, where it is not there: items and settings."""
        tokenizer = self._tokenizer()
        texts = read_texts(self.request.texts, tokenizer, self.request.target, self.request.sizes.texts)
        record = self._record(texts)
        begun = storage.check_same(self.folder, record)
        if not (begun and (self.folder / storage.ITEMS_FILE).exists()):
            storage.write_items(self.folder, build_items(self.request, tokenizer, texts))
        if not (begun and (self.folder / storage.SETTINGS_FILE).exists()):
            storage.write_settings(self.folder, self._settings(texts))
        storage.repair(self.folder)
        write_json(self.folder / storage.REQUEST_FILE, record)

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from pipeline.model_files import read_tokenizer

        return read_tokenizer(self.request.model, self._commit, trust_remote_code=self.request.trust_remote_code)

    def _settings(self, texts: Sequence[Text]) -> list[Setting]:
        """All settings of the comparison, with those whose numbers are measured on the model."""
        found = {setting.id: setting for setting in self._planned}
        for name in dict.fromkeys(setting.method for setting in self._planned):
            if METHODS[name].automatic(self.request.window):
                try:
                    setting = self._automatic(name, choosing(texts) if self.request.tune else None)
                except ValueError as error:
                    logger.warning("left out, %s auto: %s", METHODS[name].label, error)
                else:
                    found[setting.id] = setting
        return list(found.values())

    def _automatic(self, name: str, texts: Sequence[Text] | None) -> Setting:
        """A method at what "auto" stands for on this model, measured within its window.

        texts: those to measure on. Like a grid's setting it is chosen, so they are the texts that choose; where none
        do, all report, and it is Python's help (None), which `pred.py` measures on too.
        """
        from models.DPI.calibration import calibrate
        from models.DPI.patches.Llama import uninstall

        own = None if texts is None else [text.text for text in texts]
        found = calibrate(uninstall(self.model()), self._tokenizer(), self.request.window, texts=own)
        logger.info("%s auto: W = %d, because %s", METHODS[name].label, found.window, found.reason)
        params, label = METHODS[name].automatic(found.window), f"{METHODS[name].label} auto"
        names = tuple(text.name for text in texts or ())
        return Setting(name, params, found.window, label, default=True, measured=True, measured_on=names)

    def _record(self, texts: Sequence[Text]) -> dict[str, Any]:
        from models.DPI.loading import device_name
        from pipeline.model_files import weights_digests

        return {
            "request": self.request.model_dump(mode="json"),
            "texts": [{"name": text.name, "sha256": text.digest, "whole": text.ids is not None} for text in texts],
            "baseline": self.baseline,
            "refused": [vars(one) for one in self.refused],
            "commit": self._commit,
            "weights": weights_digests(self.request.model),
            "device": device_name(self._wishes.device or self._workers.device()),
            "attention": self._attention(),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "begun": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def _attention(self) -> dict[str, str]:
        """The implementation that each method attends with, by name; what "auto" takes depends on the machine."""
        from models.DPI.loading import check_attention

        found: dict[str, str] = {}
        for one in self._planned:
            if one.method in found:
                continue
            method, asked = one.build(), self.request.attn_impl
            try:
                found[one.method] = check_attention(self._config, method, one.window, asked, self._device, self._dtype)
            except ValueError:  # which every measurement says again
                found[one.method] = asked
        return found

    def model(self) -> PreTrainedModel:
        """The model, loaded when it is first needed. Raises `UserError`."""
        from pipeline.model_loader import EngineLoader

        if self._model is None:
            self._model = EngineLoader(self._workers).with_model(self._experiment(self._planned[0])).model
        return self._model

    def _experiment(self, setting: Setting) -> ExperimentConfig:
        content = experiment_of(setting, self.request.model_dump(mode="json"), "comparison")
        return build_config({**content, "device": self._wishes.device, "model_revision": self._commit}, "comparison")

    def _measure(self, settings: Sequence[Setting], items: Sequence[Item], what: str = "") -> None:
        """This process's share of the settings on the items, what is there left out."""
        done = {(line["setting"], line["item"]) for line in storage.read_scores(self.folder) if "error" not in line}
        self._workers.barrier()  # nobody writes a line while another process reads them
        own = settings[self._workers.index :: self._workers.count]
        left: dict[str, list[Item]] = {}
        for setting in own:
            if missing := [item for item in items if (setting.id, item.id) not in done]:
                left[setting.id] = missing
        if not left:
            return
        from comparison.measuring import measure

        model = self.model()
        total = sum(len(item.ids) for missing in left.values() for item in missing)
        bar = tqdm(total=total, unit="tok", unit_scale=True, disable=not self._workers.is_main, dynamic_ncols=True)
        with bar, Appender(storage.scores_file(self.folder, self._workers.rank)) as appender:
            for number, setting in enumerate(own, 1):
                if setting.id not in left:
                    continue
                bar.set_description(f"{what}setting {number} of {len(own)}: {setting.label[:LONGEST_NAME]}")
                found = measure(
                    model, setting, left[setting.id],
                    window=self.request.window, attn_impl=self.request.attn_impl, seed=self.request.seed,
                )  # fmt: skip
                for item, line in found:
                    appender.write(line)
                    bar.update(len(item.ids))


def experiment_of(setting: Setting, request: dict[str, Any], name: str) -> dict[str, Any]:
    """The configuration of `pred.py` that runs a setting on the needle test. request: as `request.json` has it."""
    return {
        "model": request["model"],
        "exp_name": name,
        "method": setting.method,
        "task": "needle",
        "max_pe": request["target"],
        "ori_max_position_embeddings": setting.window,
        "dtype": request["dtype"],
        "attn_impl": request["attn_impl"],
        "seed": request["seed"],
        "trust_remote_code": request["trust_remote_code"],
        "params": dict(setting.params),
    }


def check_methods(names: Iterable[str] | None) -> tuple[str, ...]:
    """The methods meant, each once. Raises `UserError` for an unknown one."""
    if names is None:
        return tuple(METHODS)
    found = tuple(dict.fromkeys(names))
    for name in found:
        if name not in METHODS:
            raise UserError(f"--methods: {name!r} is none of {', '.join(METHODS)}{did_you_mean(name, METHODS)}")
    if not found:
        raise UserError(f"--methods names none; give some of {', '.join(METHODS)}")
    return found


def check_baseline(name: str | None, methods: Sequence[str]) -> str:
    """The method that others are compared with. Raises `UserError` if it is not among them."""
    if name is None:
        return "dpi" if "dpi" in methods else methods[0]
    if name not in methods:
        raise UserError(f"--baseline {name!r} is not among the methods compared ({', '.join(methods)})")
    return name


def sizes_of(wishes: Wishes, window: int, *, gpu: bool) -> dict[str, Any]:
    """How much is measured: what the command line says, else the defaults for the machine."""
    usual = sizes_for(window, wishes.target, tune=wishes.tune, gpu=gpu) if wishes.target > window else None
    if usual is None:  # which the request refuses
        usual = Sizes(lengths=(wishes.target,), depths=1, samples=1, texts=1)
    given = {
        "lengths": tuple(sorted(set(wishes.lengths))) if wishes.lengths else None,
        "depths": wishes.depths,
        "samples": wishes.samples,
        "texts": wishes.texts_limit,
    }
    return {**usual.model_dump(), **{name: value for name, value in given.items() if value is not None}}


def default_folder(results: Path, request: Request) -> Path:
    """Where a comparison lies if nothing is said: by model, window and target."""
    short = request.model.rstrip("/").split("/")[-1]
    tuned = "-tuned" if request.tune else ""
    return results / "compare" / f"{short}-{request.window}-to-{request.target}{tuned}"


def window_of(config: PreTrainedConfig) -> int:
    """W of the model, in tokens. Raises `UserError` if its configuration says none."""
    from models.DPI.loading import window_of as found

    try:
        return found(config)
    except ValueError as error:
        raise UserError(str(error)) from None


def checker(config: PreTrainedConfig) -> Any:
    """Raises ValueError for a method that a model of this configuration cannot run."""
    from models.DPI.patches.Llama import check_config

    def check(method: Method, window: int) -> None:
        check_config(config, method, window)

    return check


__all__ = ["Refused", "Session", "Wishes", "experiment_of"]
