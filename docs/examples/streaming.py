"""An answer that appears word by word, and a second question that does not read the text again.

python -m docs.examples.streaming
"""

from pydoc_data.topics import topics

from transformers import DynamicCache, TextStreamer

from models.DPI.dpi import get_model_and_tokenizer

params = {"chunk_coe": 1, "local_window": 128}  # causal: what was read can be kept
model, tokenizer = get_model_and_tokenizer("tiny", None, "dpi", params)
streamer = TextStreamer(tokenizer, skip_prompt=True)
text = "\n".join(topics.values())[:4_000]
cache = DynamicCache(config=model.config)
for question in ("\nThe language is", "\nA statement is"):
    text += question
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False).to(model.device)
    held = cache.get_seq_length()
    print(f"{inputs['input_ids'].shape[1]} tokens, of which {held} are read already:{question}", end="")
    output = model.generate(
        **inputs, past_key_values=cache, max_new_tokens=12, min_new_tokens=12, do_sample=False, streamer=streamer
    )
    text = tokenizer.decode(output[0], skip_special_tokens=True)
