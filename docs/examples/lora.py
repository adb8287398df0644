"""LoRA on inputs beyond the window: python -m docs.examples.lora

Methods change positions alone, so weights learn under them as under the stock model.
"""

from pydoc_data.topics import topics

import torch
from peft import LoraConfig, get_peft_model

from models.DPI.dpi import get_model_and_tokenizer

torch.manual_seed(0)
model, tokenizer = get_model_and_tokenizer("tiny", None, "dpi", {"chunk_coe": 1, "local_window": 128})
adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
adapted.print_trainable_parameters()
adapted.train()
optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=2e-3)
ids = tokenizer("\n".join(topics.values())[:9_000], return_tensors="pt")["input_ids"][:, :700].to(model.device)
print(f"{ids.shape[1]} tokens, the window is {model.config.max_position_embeddings}")
for step in range(4):
    loss = adapted(ids, labels=ids).loss
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    print(f"step {step}: loss {loss.item():.4f}")
