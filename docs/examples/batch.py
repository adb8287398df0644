"""Prompts of different length in one padded batch: each row is as if it were alone. python -m docs.examples.batch"""

import torch

from models.DPI.dpi import get_model_and_tokenizer

model, tokenizer = get_model_and_tokenizer("tiny", None, "repro_se", {"group_size": 6, "window_size": 128})
noise = "The grass is green. The sky is blue. The sun is yellow. "
prompts = [
    f"{noise * before}The pass key is {key}. Remember it. {noise * after}What is the pass key? The pass key is"
    for key, before, after in (("41837", 30, 30), ("90216", 4, 1), ("77350", 2, 45))
]
# The tokenizer pads on the left, as generation needs it.
inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False).to(model.device)
lengths = inputs["attention_mask"].sum(1).tolist()
output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
for prompt, length, row in zip(prompts, lengths, output[:, inputs["input_ids"].shape[1] :], strict=True):
    alone = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    single = model.generate(**alone, max_new_tokens=8, do_sample=False)[0, length:]
    same = bool(torch.equal(row[: len(single)], single))
    print(f"{length} tokens: {tokenizer.decode(row, skip_special_tokens=True)!r}, as alone: {same}")
