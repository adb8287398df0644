"""GALI in vLLM: keys enter the paged cache un-rotated, and attention rotates them by a method's bands.

    LLM(model, max_model_len=32768, additional_config={"gali": {"method": "dpi", "params": {"chunk_coe": 1}}})

An engine without `gali` in its additional_config is a stock engine, in the same process too.
"""


def register() -> None:
    """The entry point of vLLM's general plug-ins: called in every process, maybe more than once.

    GALI itself is imported by engines that ask for it alone: stock ones do not need it.
    """
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from vllm_gali import configuring, rotary, saying

    rotary.register()
    register_backend(AttentionBackendEnum.CUSTOM, "vllm_gali.backend.GaliBackend")
    register_backend(AttentionBackendEnum.CPU_ATTN, "vllm_gali.cpu.Backend")  # a CPU takes it whatever was asked for
    configuring.register()
    saying.register()
