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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tasks.base import Engine, Line, Record, Task
from tasks.chat import chat_ids, has_llama2_template
from tasks.errors import UserError
from tasks.jsonl import find_in_folder, hub_file, read_rows
from tasks.leval_scores import score_dataset
from tasks.metrics.summary import average

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.config import ExperimentConfig

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


class LEval(Task):
    """L-Eval. One prediction line an instruction, in the order of the documents."""

    name: ClassVar[str] = "leval"
    folder: ClassVar[str] = "le/pred"
    scores_foreign: ClassVar[bool] = True

    def datasets(self, cfg: ExperimentConfig) -> list[str]:
        return list(CLOSED_ENDED)

    def known_datasets(self, cfg: ExperimentConfig) -> list[str]:
        return [*CLOSED_ENDED, *OPEN_ENDED]

    def records(self, cfg: ExperimentConfig, dataset: str) -> Iterable[Record]:
        name = f"{dataset}.jsonl"
        if cfg.data_dir is not None:
            path = find_in_folder(cfg.data_dir, name, _SUBFOLDERS)
        else:
            path = hub_file(REPOSITORY, f"LEval/{'Exam' if dataset in CLOSED_ENDED else 'Generation'}/{name}")
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

    def prompt(
        self, cfg: ExperimentConfig, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase
    ) -> list[int]:
        return self._prompt(cfg, dataset, record, tokenizer)[0]

    def predict(self, engine: Engine, dataset: str, record: Record) -> Line:
        cfg, tokenizer = engine.cfg, engine.tokenizer
        ids, shown = self._prompt(cfg, dataset, record, tokenizer)
        generation = engine.generate(ids, max_new_tokens(cfg))
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
            fact = engine.generate(_fact_ids(cfg, record, tokenizer), max_new_tokens(cfg))
            line["pred"] += f" [fact: {fact.text}]"
            line["final_len_fact"] = fact.total_tokens
        return line

    def _prompt(
        self, cfg: ExperimentConfig, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[int], str]:
        """Token ids of a prompt, and its text with the document left out."""
        limit = cfg.max_pe - max_new_tokens(cfg) - PROMPT_ROOM
        if limit < 1:
            least = max_new_tokens(cfg) + PROMPT_ROOM + 1
            raise UserError(f"max_pe = {cfg.max_pe} leaves no room for a document of {dataset!r}; it needs {least}")
        document = fit_document(record["document"], tokenizer, limit, cut_at_start=dataset in _CUT_AT_START)
        prompt = build_prompt(dataset, document, record["instruction"], record["reference"])
        shown = build_prompt(dataset, "<long document>", record["instruction"], record["reference"])
        text = shown.system + shown.message + shown.answer_prefix
        return _prompt_ids(cfg, dataset, prompt, tokenizer), text

    def score(self, cfg: ExperimentConfig | None, lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
        detail: dict[str, dict[str, Any]] = {}
        for stem, its_lines in lines.items():
            # L-Eval's own prediction files are called <dataset>.pred.jsonl.
            dataset = stem.removesuffix(".pred")
            if dataset not in CLOSED_ENDED + OPEN_ENDED:
                raise UserError(f"{dataset!r} is no data set of leval ({', '.join(CLOSED_ENDED + OPEN_ENDED)})")
            scored = [line for line in its_lines if line.get("evaluation") in EVALUATIONS]
            if scored:
                detail[dataset] = score_dataset(dataset, scored)
        result = {dataset: {"LEval_score": metrics["LEval_score"]} for dataset, metrics in detail.items()}
        averages = {
            kind: average([{"score": detail[name]["LEval_score"], "stderr": detail[name]["stderr"]} for name in named])
            for kind, names in (("closed_ended", CLOSED_ENDED), ("open_ended", OPEN_ENDED))
            if (named := [name for name in names if name in detail])
        }
        return {"result.json": result, "result_detail.json": {"datasets": detail, "average": averages}}


def max_new_tokens(cfg: ExperimentConfig) -> int:
    """Tokens to generate: the configuration's number, else the published one."""
    return int(cfg.max_new_tokens or _PROMPTS["max_new_tokens"])


def _prompt_ids(cfg: ExperimentConfig, dataset: str, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    system = prompt.system if cfg.system_prompt is None else cfg.system_prompt
    llama2 = cfg.chat == "auto" and has_llama2_template(tokenizer)
    if llama2 and dataset in _UNCLOSED:
        return list(tokenizer(f"[INST]<<SYS>>\n{system}\n<</SYS>>\n\n{prompt.message}")["input_ids"])
    if llama2 or cfg.chat == "none":
        return chat_ids(
            tokenizer, prompt.message, mode=cfg.chat, system_prompt=system, answer_prefix=prompt.answer_prefix
        )
    # Other chat models get "Answer:" at the end of the user's message, as in the paper's code for Llama-3.
    return chat_ids(tokenizer, prompt.message + prompt.answer_prefix, mode=cfg.chat, system_prompt=system)


def _fact_ids(cfg: ExperimentConfig, record: Record, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The fact probe: for Llama-2 bare text, as L-Eval asks it; for others their chat template."""
    text = fact_probe(record["instruction"])
    if has_llama2_template(tokenizer):
        return list(tokenizer(text)["input_ids"])
    return chat_ids(tokenizer, text, mode=cfg.chat, system_prompt=cfg.system_prompt)


TASK = LEval()
