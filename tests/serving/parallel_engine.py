"""A program of its own: an engine spread over processes answers prompts. Its processes begin anew with this file."""

import json
import sys
from pathlib import Path


def main(asked: Path, said: Path) -> None:
    """asked: a file with options of vllm.LLM, and prompts; their new tokens go into `said`."""
    from tests.serving.engines import GALI, Engine

    found = json.loads(asked.read_text(encoding="utf-8"))
    engine = Engine(GALI, distributed_executor_backend="mp", kv_cache_memory_bytes=128 << 20, **found["options"])
    said.write_text(json.dumps(engine.continuations(found["prompts"])), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
