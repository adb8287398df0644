"""What `generate` is told besides the prompt: settings that a model brings along, and a cache of a known size."""

from typing import Any

from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

# Which tokens mean something; plain greedy decoding has them too.
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
# What greedy decoding does not read, or is told anew by every call.
_WITHOUT_EFFECT = {
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "max_length", "max_new_tokens", "early_stopping", "use_cache", "cache_implementation", "cache_config",
    "max_cache_len", "compile_config", "disable_compile", "is_assistant", "transformers_version", "_from_model_config",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
}  # fmt: skip
# Values that change nothing, besides None, false and what is empty.
_NEUTRAL = {
    "repetition_penalty": 1, "encoder_repetition_penalty": 1, "length_penalty": 1, "diversity_penalty": 0,
    "guidance_scale": 1, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "min_length": 0,
    "min_new_tokens": 0, "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1,
}  # fmt: skip


def decode_plainly(model: PreTrainedModel) -> dict[str, Any]:
    """Take a model's own generation settings off it, all but its special tokens, so that `generate` has none but those
    that it is called with. Returns those that would have changed greedy decoding, such as `repetition_penalty`.
    """
    own = model.generation_config
    if own is None:
        return {}
    settings = own.to_dict()
    model.generation_config = type(own)(**{name: settings[name] for name in _TOKENS if name in settings})
    return {
        name: value
        for name, value in settings.items()
        if name not in _TOKENS and name not in _WITHOUT_EFFECT and not _is_neutral(name, value)
    }


def _is_neutral(name: str, value: Any) -> bool:
    return value is None or value is False or value in ([], {}) or _NEUTRAL.get(name) == value


def static_cache(model: PreTrainedModel, tokens: int) -> StaticCache:
    """A static cache for so many tokens a row.

    Those that `generate` makes itself are never smaller than the largest one that it made before.
    """
    return StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=tokens)


def dynamic_cache(model: PreTrainedModel) -> Cache:
    """An empty cache that grows, as `generate` makes it."""
    return DynamicCache(config=model.config.get_text_config(decoder=True))
