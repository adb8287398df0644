"""LongBench (Bai et al., 2023, arXiv 2308.14508): 21 tasks, of which the paper uses the 16 English ones.

Prompts, generation lengths and the rules of the official code: a prompt that does not fit is cut in its middle, six
tasks get no chat template, samsum ends at a newline. As the paper's authors ran it, the prompt's room is the target
less the generation length less 50 tokens for the chat template (the official code has fixed lengths, about 500 less
than each model's window).

Three results: every record, records whose prompt is longer than the window (`result_o.json`), and records whose
prompt, before it is cut, is longer than the target (`result_t.json`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from tasks.base import Dialogue, GenerationTask, Line, Record, Request
from tasks.chat import chat_ids
from tasks.errors import BadFieldError, UserError
from tasks.jsonl import find_in_folder, hub_file, hub_source, read_rows, read_zipped_rows
from tasks.metrics.classification import classification
from tasks.metrics.code_similarity import code_similarity
from tasks.metrics.numbers import count_score, retrieval_score
from tasks.metrics.rouge import rouge_l, rouge_l_chinese
from tasks.metrics.summary import average, summarise
from tasks.metrics.token_f1 import qa_f1, qa_f1_chinese
from tasks.options import Options
from tasks.results import DETAIL_FILE, RESULT_FILE, Score, detailed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_DATA = Path(__file__).parent / "data" / "longbench"
PROMPTS: dict[str, str] = json.loads((_DATA / "dataset2prompt.json").read_text(encoding="utf-8"))
MAX_NEW_TOKENS: dict[str, int] = json.loads((_DATA / "dataset2maxlen.json").read_text(encoding="utf-8"))

REPOSITORY = "THUDM/LongBench"
FIELDS = ("input", "context", "answers", "length")
CHINESE = frozenset({"multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh"})
NO_CHAT_TEMPLATE = frozenset({"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"})
SCORED_BY_FIRST_LINE = frozenset({"trec", "triviaqa", "samsum", "lsht"})
# Tokens of the target that stay free for the chat template, as in the paper's code.
TEMPLATE_ROOM = 50
SUBSETS = {RESULT_FILE: "all", "result_o.json": "longer_than_window", "result_t.json": "longer_than_target"}
"""Which records a result file is about."""

Marks = Sequence[tuple[Line, float]]
"""Prediction lines with their scores in [0, 1]."""

_SCORERS: dict[str, Callable[[str, str], float]] = {
    "narrativeqa": qa_f1,
    "qasper": qa_f1,
    "multifieldqa_en": qa_f1,
    "multifieldqa_zh": qa_f1_chinese,
    "hotpotqa": qa_f1,
    "2wikimqa": qa_f1,
    "musique": qa_f1,
    "dureader": rouge_l_chinese,
    "gov_report": rouge_l,
    "qmsum": rouge_l,
    "multi_news": rouge_l,
    "vcsum": rouge_l_chinese,
    "triviaqa": qa_f1,
    "samsum": rouge_l,
    "passage_count": count_score,
    "passage_retrieval_en": retrieval_score,
    "passage_retrieval_zh": retrieval_score,
    "lcc": code_similarity,
    "repobench-p": code_similarity,
}
# Scored against the class names of the record: trec, lsht.
_CLASSIFIED = frozenset(PROMPTS) - frozenset(_SCORERS)


def official_prompt(dataset: str, record: Mapping[str, Any]) -> str:
    """The published prompt of a record, before it is cut and before any chat template."""
    return PROMPTS[dataset].format(context=record["context"], input=record["input"])


def cut_middle(text: str, tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[str, int, int]:
    """The text with its middle left out where it has more than `limit` tokens, and its tokens before and after.

    Halves of int(limit / 2) tokens stay, decoded without special tokens, as in the official code.
    """
    ids = tokenizer(text, truncation=False)["input_ids"]
    if len(ids) <= limit:
        return text, len(ids), len(ids)
    half = limit // 2
    ends = [str(tokenizer.decode(part, skip_special_tokens=True)) for part in (ids[:half], ids[-half:])]
    return "".join(ends), len(ids), 2 * half


def record_score(dataset: str, line: Mapping[str, Any]) -> float:
    """Score of one prediction line, in [0, 1]: the best over its answers."""
    prediction = line["pred"]
    if dataset in SCORED_BY_FIRST_LINE:
        prediction = prediction.lstrip("\n").split("\n")[0]
    if dataset in _CLASSIFIED:
        scores = [classification(prediction, answer, line["all_classes"]) for answer in line["answers"]]
    else:
        scores = [_SCORERS[dataset](prediction, answer) for answer in line["answers"]]
    return max(scores, default=0.0)


class LongBench(GenerationTask):
    """The 21 tasks. `LongBenchE` has the same prompts and other records."""

    name: ClassVar[str] = "longbench"
    label: ClassVar[str] = "LongBench"
    folder: ClassVar[str] = "lb/pred"
    prefix: ClassVar[str] = "lb"
    result_files: ClassVar[tuple[str, ...]] = tuple(SUBSETS)
    scores_foreign: ClassVar[bool] = True
    file_suffix: ClassVar[str] = ""
    all_datasets: ClassVar[tuple[str, ...]] = tuple(PROMPTS)

    @override
    def datasets(self) -> list[str]:
        return [dataset for dataset in PROMPTS if dataset not in CHINESE]

    @override
    def known_datasets(self) -> list[str]:
        return list(self.all_datasets)

    @override
    def records(self, options: Options, dataset: str) -> Iterable[Record]:
        name = f"{dataset}{self.file_suffix}.jsonl"
        if options.data_dir is not None:
            rows = read_rows(find_in_folder(options.data_dir, name, ("data",)), FIELDS)
        else:
            rows = read_zipped_rows(hub_file(REPOSITORY, "data.zip", options), name, FIELDS)
        for index, row in enumerate(rows):
            # The number keeps ids apart where a file repeats one.
            identity = f"{index:04d}-{row['_id']}" if row.get("_id") else f"{index:04d}"
            yield {"all_classes": None, **row, "id": identity}

    @override
    def data_source(self, options: Options) -> dict[str, str] | None:
        return hub_source(REPOSITORY, options)

    @override
    def most_new_tokens(self, options: Options, dataset: str) -> int:
        return max_new_tokens(options, dataset)

    @override
    def whole_text(self, dataset: str, record: Record) -> str:
        return official_prompt(dataset, record)

    @override
    def document(self, dataset: str, record: Record) -> str:
        return str(record["context"])

    @override
    def dialogue(self, options: Options, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase) -> Dialogue:
        ids, prompt_len = self._prompt(options, dataset, record, tokenizer)
        stop: tuple[int, ...] = ()
        if dataset == "samsum":
            # Models go on with dialogues of their own: the official code ends at a newline, after one token at least.
            stop = (tokenizer.encode("\n", add_special_tokens=False)[-1],)
        generation = yield Request(ids, max_new_tokens(options, dataset), stop, min_new_tokens=1 if stop else 0)
        return {
            "pred": generation.text,
            "answers": record["answers"],
            "all_classes": record["all_classes"],
            "length": record["length"],
            "prefill_len": generation.prompt_tokens,
            "final_len": generation.total_tokens,
            "prompt_len": prompt_len,
        }

    def _prompt(
        self, options: Options, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[int], int]:
        """Token ids of the prompt as the model sees it, and the number that it would have if it were not cut."""
        limit = options.max_pe - max_new_tokens(options, dataset) - TEMPLATE_ROOM
        if limit < 2:
            least = max_new_tokens(options, dataset) + TEMPLATE_ROOM + 2
            raise UserError(f"max_pe = {options.max_pe} leaves no room for a prompt of {dataset!r}; it needs {least}")
        text, before, after = cut_middle(official_prompt(dataset, record), tokenizer, limit)
        if dataset in NO_CHAT_TEMPLATE:
            ids = list(tokenizer(text)["input_ids"])
        else:
            ids = chat_ids(tokenizer, text, mode=options.chat, system_prompt=options.system_prompt)
        return ids, len(ids) + before - after

    @override
    def score(self, options: Options | None, lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
        scored = {dataset: self._score_lines(dataset, lines[dataset]) for dataset in lines if lines[dataset]}
        documents: dict[str, Any] = {}
        detail: dict[str, Any] = {"datasets": {dataset: {} for dataset in scored}, "average": {}}
        for file, bound in _bounds(options).items():
            subset = SUBSETS[file]
            chosen = {dataset: kept for dataset, marks in scored.items() if (kept := _longer(marks, bound))}
            documents[file] = {dataset: self._published(marks) for dataset, marks in chosen.items()}
            scores = {dataset: summary(marks) for dataset, marks in chosen.items()}
            for dataset, score in scores.items():
                detail["datasets"][dataset][subset] = asdict(score)
            if scores:
                detail["average"][subset] = asdict(average(list(scores.values())))
            self._add_detail(detail, subset, chosen)
        return {**documents, DETAIL_FILE: detail}

    @override
    def columns(self, file: str, results: Mapping[str, Any]) -> dict[str, Score]:
        return {
            dataset: detailed(value, results, "datasets", dataset, SUBSETS[file])
            for dataset, value in results.get(file, {}).items()
        }

    def _score_lines(self, dataset: str, lines: Sequence[Line]) -> Marks:
        if dataset not in self.all_datasets:
            raise UserError(f"{dataset!r} is no data set of {self.name} (data sets: {', '.join(self.all_datasets)})")
        classified = dataset in _CLASSIFIED
        needed = {
            "pred",
            "answers",
            *(("all_classes",) if classified else ()),
            *self._needed_to_score(),
        }
        for line in lines:
            if missing := sorted(needed - line.keys()):
                raise BadFieldError(line, f"{dataset!r}: a prediction has no {', '.join(map(repr, missing))}")
            for field, kind in (("pred", str), ("answers", list), *((("all_classes", list),) if classified else ())):
                if not isinstance(line[field], kind):
                    raise BadFieldError(line, f"{dataset!r}: {field} = {line[field]!r} is no {kind.__name__}")
        return [(line, record_score(dataset, line)) for line in lines]

    def _needed_to_score(self) -> tuple[str, ...]:
        return ()

    def _published(self, marks: Marks) -> Any:
        """The value of `result.json`: percent, two decimals."""
        return round(100 * sum(mark for _, mark in marks) / len(marks), 2)

    def _add_detail(self, detail: dict[str, Any], subset: str, chosen: Mapping[str, Marks]) -> None:
        """Put what else there is to say of a subset's records, by data set, into `result_detail.json`."""


def summary(marks: Marks) -> Score:
    """The mean in percent."""
    return summarise([mark for _, mark in marks])


def max_new_tokens(options: Options, dataset: str) -> int:
    """Tokens to generate: the configuration's number, else the published one."""
    return options.max_new_tokens or MAX_NEW_TOKENS[dataset]


def _bounds(options: Options | None) -> dict[str, int]:
    """The number of tokens that a prompt must exceed (−1: any prompt), for each result file that can be given."""
    bounds = {RESULT_FILE: -1}
    if options is None:
        return bounds
    if not isinstance(options.ori_max_position_embeddings, int):
        logger.warning("the configuration names no ori_max_position_embeddings: result_o.json is not written")
    else:
        bounds["result_o.json"] = options.ori_max_position_embeddings
    return {**bounds, "result_t.json": options.max_pe}


def _longer(marks: Marks, bound: int) -> Marks:
    return [(line, mark) for line, mark in marks if _prompt_length(line) > bound]


def _prompt_length(line: Line) -> int:
    """Tokens of the whole prompt; of what was fed, in files that do not say."""
    return int(line.get("prompt_len") or line.get("prefill_len") or 0)


TASK = LongBench()
