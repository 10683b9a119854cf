"""Many prompts through the engine in this process: python examples/offline_batch.py [--model MODEL] [FILE].

FILE has a prompt a line; a JSON object a line comes out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from frontends.offline import LLM, SamplingParams

PROMPTS = ["The sea is", "Snow is", "The capital of France is", "2 + 2 ="]


def main(argv: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("file", nargs="?", type=Path)
    options.add_argument("--model", default="demo")
    options.add_argument("--max-tokens", type=int, default=24)
    given = options.parse_args(argv)

    prompts = given.file.read_text(encoding="utf-8").splitlines() if given.file else PROMPTS
    with LLM(given.model, max_model_len=1024) as llm:
        params = SamplingParams(temperature=0, max_tokens=given.max_tokens)
        for output in llm.generate(prompts, params, use_tqdm=True):
            part = output.outputs[0]
            print(json.dumps({"prompt": output.prompt, "text": part.text, "finish_reason": part.finish_reason}))


if __name__ == "__main__":
    main()
