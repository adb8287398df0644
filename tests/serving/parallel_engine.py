"""A program of its own: an engine spread over processes answers prompts. Its processes begin anew with this file."""

import json
import sys


def main() -> None:
    """Standard input: options of vllm.LLM, and prompts; the last line of standard output: their new tokens."""
    from tests.serving.engines import GALI, Engine

    asked = json.load(sys.stdin)
    engine = Engine(GALI, distributed_executor_backend="mp", kv_cache_memory_bytes=128 << 20, **asked["options"])
    print(json.dumps(engine.continuations(asked["prompts"])), flush=True)  # noqa: T201
    engine.close()


if __name__ == "__main__":
    main()
