"""A task of your own under EleutherAI's harness, from Python: python -m docs.examples.harness (needs lm_eval)."""

import json
import tempfile
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

import tools.harness  # registers the model

TASK = """task: passkey
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""

noise = "The grass is green. The sky is blue. The sun is yellow. "
rows = [
    {
        "text": f"{noise * 20}The pass key is {key}. Remember it. {noise * 30}What is the pass key? The pass key is",
        "choices": [f" {key}", " 55555", " 10203"],
    }
    for key in ("41837", "90216", "77350")
]
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (Path(folder) / "passkey.yaml").write_text(TASK.format(path=path), encoding="utf-8")
    for method, params in (("dpi", {"chunk_coe": 1, "local_window": 128}), ("repro_original", {})):
        model = tools.harness.GaliLM("tiny", method, params, max_length=2048, batch_size=3)
        tasks = TaskManager(include_path=folder, include_defaults=False)
        found = lm_eval.simple_evaluate(model, tasks=["passkey"], task_manager=tasks, bootstrap_iters=0)
        print(f"{method}: accuracy {found['results']['passkey']['acc,none']:.2f}")
