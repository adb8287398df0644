"""L-Eval (An et al., 2023, arXiv 2307.11088): seven closed-ended tasks, the paper's, and thirteen open-ended.

Each document has several instructions. Each is a prompt of its own with the whole document, as L-Eval's code for
Llama-2 asks them, and so are the three questions of topic retrieval. A document that does not fit loses words at
its end (codeU: at its beginning) until its tokens fit the target less 512 tokens of generation less 50, the room
that the paper's authors leave. Science fiction is asked twice: by the document, and by what the model knows of the
world. Open-ended answers are scored by F1 or ROUGE, and the model is told how many words the reference has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from tasks.base import Dialogue, GenerationTask, Line, Record, Request
from tasks.chat import chat_ids, has_llama2_template
from tasks.errors import UserError
from tasks.jsonl import find_in_folder, hub_file, hub_source, read_rows
from tasks.leval_scores import DatasetScore, score_dataset
from tasks.metrics.exact_match import SearchedPart
from tasks.metrics.summary import average
from tasks.options import Options
from tasks.results import DETAIL_FILE, RESULT_FILE, Score, detailed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROMPTS = json.loads((Path(__file__).parent / "data" / "leval" / "prompts.json").read_text(encoding="utf-8"))

REPOSITORY = "L4NLP/LEval"
CLOSED_ENDED = ("coursera", "gsm100", "quality", "tpo", "codeU", "sci_fi", "topic_retrieval_longchat")
OPEN_ENDED = (
    "financial_qa",
    "gov_report_summ",
    "legal_contract_qa",
    "meeting_summ",
    "multidoc_qa",
    "narrative_qa",
    "natural_question",
    "news_summ",
    "paper_assistant",
    "patent_summ",
    "review_summ",
    "scientific_qa",
    "tv_show_summ",
)
FIELDS = ("input", "instructions", "outputs", "evaluation")
# Documents marked "LLM" or "human" are for judges, not for a metric.
EVALUATIONS = ("exam", "f1", "rouge")
_SUBFOLDERS = ("Closed-ended-tasks", "Open-ended-tasks", "Exam", "Generation")
_PLAIN = frozenset({"gsm100", "codeU", "topic_retrieval_longchat"})
# Llama-2 gets these as an instruction that is not closed by [/INST]: it goes on with the text.
_UNCLOSED = frozenset({"gsm100", "codeU"})
_CUT_AT_START = frozenset({"codeU"})
PROMPT_ROOM = 50
# Words by which a document shrinks further each time that it does not fit.
_STEP = 250


@dataclass(frozen=True)
class Prompt:
    """The parts of a prompt. `answer_prefix` begins the answer."""

    system: str
    message: str
    answer_prefix: str = ""

    @property
    def text(self) -> str:
        """All of it, without chat template."""
        return self.system + self.message + self.answer_prefix


def build_prompt(dataset: str, document: str, instruction: str, reference: str) -> Prompt:
    """The published prompt of one instruction."""
    systems, messages = _PROMPTS["system"], _PROMPTS["message"]
    if dataset in _PLAIN:
        message = messages["plain"].format(document=document, instruction=instruction)
        return Prompt(systems[dataset], message)
    if dataset in CLOSED_ENDED:
        message = messages["exam"].format(document=document, instruction=instruction)
        return Prompt(systems.get(dataset, systems["exam"]), message, _PROMPTS["answer_prefix"])
    words = len(reference.split())
    message = messages["ngram"].format(document=document, instruction=instruction, words=words)
    return Prompt(systems["ngram"], message)


def fact_probe(instruction: str) -> str:
    """A question on a science fiction document, asked of the real world instead."""
    probe = _PROMPTS["fact_probe"]
    return str(instruction.replace(probe["replace"], probe["by"]) + probe["append"])


def fit_document(document: str, tokenizer: PreTrainedTokenizerBase, limit: int, *, cut_at_start: bool) -> str:
    """A document of at most `limit` tokens: its first words, or with `cut_at_start` its last.

    As L-Eval does it: `limit` words first, then 250 fewer each time while there are too many tokens; below 500
    words, where that would soon leave nothing, half as many each time.
    """
    words = limit
    while len(tokenizer(document, truncation=False)["input_ids"]) > limit:
        if not words:
            return ""
        parts = document.split(" ")
        document = " ".join(parts[-words:] if cut_at_start else parts[:words])
        words = max(words - _STEP, words // 2)
    return document


class LEvalOptions(Options):
    """How answers are scored."""

    may_change: ClassVar[frozenset[str]] = frozenset({"exact_match"})

    exact_match: SearchedPart = Field("whole", description="part of a prediction searched for an answer in words")


class LEval(GenerationTask):
    """L-Eval. One record per instruction, in the order of the documents."""

    name: ClassVar[str] = "leval"
    label: ClassVar[str] = "L-Eval"
    folder: ClassVar[str] = "le/pred"
    prefix: ClassVar[str] = "le"
    scores_foreign: ClassVar[bool] = True
    Options = LEvalOptions

    @override
    def datasets(self) -> list[str]:
        return list(CLOSED_ENDED)

    @override
    def known_datasets(self) -> list[str]:
        return [*CLOSED_ENDED, *OPEN_ENDED]

    @override
    def records(self, options: LEvalOptions, dataset: str) -> Iterable[Record]:
        name = f"{dataset}.jsonl"
        if options.data_dir is not None:
            path = find_in_folder(options.data_dir, name, _SUBFOLDERS)
        else:
            path = hub_file(REPOSITORY, f"LEval/{'Exam' if dataset in CLOSED_ENDED else 'Generation'}/{name}", options)
        for number, row in enumerate(read_rows(path, FIELDS)):
            if row["evaluation"] not in EVALUATIONS:
                continue
            if len(row["instructions"]) != len(row["outputs"]):
                raise UserError(f"{str(path)!r}: document {number} has not as many outputs as instructions")
            pairs = zip(row["instructions"], row["outputs"], strict=True)
            for turn, (instruction, reference) in enumerate(pairs):
                yield {
                    "id": f"{number:03d}-{turn:02d}",
                    "document": row["input"],
                    "instruction": instruction,
                    "reference": reference,
                    "evaluation": row["evaluation"],
                    "turn": turn,
                }

    @override
    def data_source(self, options: LEvalOptions) -> dict[str, str] | None:
        return hub_source(REPOSITORY, options)

    @override
    def most_new_tokens(self, options: LEvalOptions, dataset: str) -> int:
        return max_new_tokens(options) * (2 if dataset == "sci_fi" else 1)

    @override
    def whole_text(self, dataset: str, record: Record) -> str | None:
        """Of a document's first instruction; None for the others, which have the same document."""
        if record["turn"]:
            return None
        return build_prompt(dataset, record["document"], record["instruction"], record["reference"]).text

    @override
    def document(self, dataset: str, record: Record) -> str:
        return str(record["document"])

    @override
    def dialogue(
        self, options: LEvalOptions, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase
    ) -> Dialogue:
        room = max_new_tokens(options)
        ids, shown = self._prompt(options, dataset, record, tokenizer)
        generation = yield Request(ids, room)
        line = {
            "query": record["instruction"],
            "gt": record["reference"],
            "prompt": shown,
            "pred": generation.text,
            "evaluation": record["evaluation"],
            "prefill_len": generation.prompt_tokens,
            "final_len": generation.total_tokens,
            "turn": record["turn"],
        }
        if dataset == "sci_fi":
            fact = yield Request(_fact_ids(options, record, tokenizer), room)
            line["pred"] += f" [fact: {fact.text}]"
            line["final_len_fact"] = fact.total_tokens
        return line

    def _prompt(
        self, options: LEvalOptions, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[int], str]:
        """Token ids of a prompt, and its text with the document left out."""
        limit = options.max_pe - max_new_tokens(options) - PROMPT_ROOM
        if limit < 1:
            least = max_new_tokens(options) + PROMPT_ROOM + 1
            raise UserError(f"max_pe = {options.max_pe} leaves no room for a document of {dataset!r}; it needs {least}")
        document = fit_document(record["document"], tokenizer, limit, cut_at_start=dataset in _CUT_AT_START)
        prompt = build_prompt(dataset, document, record["instruction"], record["reference"])
        shown = build_prompt(dataset, "<long document>", record["instruction"], record["reference"])
        return _prompt_ids(options, dataset, prompt, tokenizer), shown.text

    @override
    def score(self, options: LEvalOptions | None, lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
        """`result_detail.json` also has the official scorer's metrics, and the parts that some scores are means of."""
        searched = "whole" if options is None else options.exact_match
        found: dict[str, DatasetScore] = {}
        for stem, its_lines in lines.items():
            # L-Eval's own prediction files are called <dataset>.pred.jsonl.
            dataset = stem.removesuffix(".pred")
            if dataset not in CLOSED_ENDED + OPEN_ENDED:
                raise UserError(f"{dataset!r} is no data set of leval ({', '.join(CLOSED_ENDED + OPEN_ENDED)})")
            scored = [line for line in its_lines if line.get("evaluation") in EVALUATIONS]
            if scored:
                found[dataset] = score_dataset(dataset, scored, searched)
        averages = {
            kind: asdict(average([found[name].score for name in named]))
            for kind, names in (("closed_ended", CLOSED_ENDED), ("open_ended", OPEN_ENDED))
            if (named := [name for name in names if name in found])
        }
        detail = {
            "datasets": {dataset: asdict(its.score) for dataset, its in found.items()},
            "average": averages,
            "exact_match": searched,
            "parts": {
                dataset: {name: asdict(part) for name, part in its.parts.items()}
                for dataset, its in found.items()
                if its.parts
            },
            "metrics": {dataset: its.metrics for dataset, its in found.items()},
        }
        return {
            RESULT_FILE: {dataset: {"LEval_score": its.score.score} for dataset, its in found.items()},
            DETAIL_FILE: detail,
        }

    @override
    def columns(self, file: str, results: Mapping[str, Any]) -> dict[str, Score]:
        return {
            dataset: detailed(value["LEval_score"], results, "datasets", dataset)
            for dataset, value in results.get(file, {}).items()
        }


def max_new_tokens(options: Options) -> int:
    """Tokens to generate: the configuration's number, else the published one."""
    return int(options.max_new_tokens or _PROMPTS["max_new_tokens"])


def _prompt_ids(options: Options, dataset: str, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    system = prompt.system if options.system_prompt is None else options.system_prompt
    llama2 = options.chat == "auto" and has_llama2_template(tokenizer)
    if llama2 and dataset in _UNCLOSED:
        return list(tokenizer(f"[INST]<<SYS>>\n{system}\n<</SYS>>\n\n{prompt.message}")["input_ids"])
    if llama2 or options.chat == "none":
        return chat_ids(
            tokenizer, prompt.message, mode=options.chat, system_prompt=system, answer_prefix=prompt.answer_prefix
        )
    # Other chat models get "Answer:" at the end of the user's message, as in the paper's code for Llama-3.
    return chat_ids(tokenizer, prompt.message + prompt.answer_prefix, mode=options.chat, system_prompt=system)


def _fact_ids(options: Options, record: Record, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The fact probe: for Llama-2 bare text, as L-Eval asks it; for others their chat template."""
    text = fact_probe(record["instruction"])
    if has_llama2_template(tokenizer):
        return list(tokenizer(text)["input_ids"])
    return chat_ids(tokenizer, text, mode=options.chat, system_prompt=options.system_prompt)


TASK = LEval()
