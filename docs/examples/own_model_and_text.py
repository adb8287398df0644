"""A question on your own text, with your own model: python -m docs.examples.own_model_and_text --text FILE."""

import argparse
from pathlib import Path

from models.DPI.dpi import get_model_and_tokenizer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="tiny", help="a Hugging Face id, a folder, or a short name")
parser.add_argument("--window", type=int, default=512, help="W; for retrieval half of the model's own or less")
parser.add_argument("--text", type=Path, default=Path("README.md"))
parser.add_argument("--question", default="What is the method's name?")
arguments = parser.parse_args()

# Chunk-free GALI with a quarter of the window at integer positions: what the README recommends.
params = {"chunk_coe": 1, "local_window": arguments.window // 4}
model, tokenizer = get_model_and_tokenizer(arguments.model, None, "dpi", params, arguments.window)

message = f"{arguments.text.read_text(encoding='utf-8')}\n\n{arguments.question}"
if tokenizer.chat_template:
    turns = [{"role": "user", "content": message}]
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
else:
    inputs = tokenizer(message, return_tensors="pt", return_token_type_ids=False)
inputs = inputs.to(model.device)
length = inputs["input_ids"].shape[1]
print(f"{length} tokens, {length / arguments.window:.1f} windows")
output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
print(tokenizer.decode(output[0, length:], skip_special_tokens=True))
