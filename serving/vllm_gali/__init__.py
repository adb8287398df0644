"""GALI in vLLM: keys enter the paged cache un-rotated, and attention rotates them by a method's bands.

    LLM(model, max_model_len=32768, additional_config={"gali": {"method": "dpi", "params": {"chunk_coe": 1}}})

An engine without `gali` in its additional_config is a stock engine, in the same process too.
"""


def register() -> None:
    """The entry point of vLLM's general plug-ins: called in every process, maybe more than once."""
    from vllm_gali import backend, configuring, rotary

    rotary.register()
    backend.register()
    configuring.register()
