"""The engine beside an event loop, without a server: python examples/async_llm.py [--model MODEL]."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

from frontends.offline import AsyncLLM, SamplingParams

BRIEF = SamplingParams(temperature=0, max_tokens=24)


async def run(model: str) -> None:
    async with AsyncLLM(model, max_model_len=1024, log_level="warning") as llm:
        print("stream: ", end="")
        async for delta in llm.stream("The sea is", BRIEF):
            print(delta.text, end="", flush=True)
        print()

        things = ("snow", "rain", "tea")
        answers = await asyncio.gather(
            *(llm.chat([{"role": "user", "content": f"What is {thing}?"}], BRIEF) for thing in things)
        )
        for thing, answer in zip(things, answers, strict=True):
            print(f"{thing}: {answer.outputs[0].text}")

        try:  # a request whose task is cancelled ends in the engine too
            async with asyncio.timeout(0.05):
                await llm.generate("And so on,", SamplingParams(max_tokens=900, ignore_eos=True))
        except TimeoutError:
            print("cancelled, still running:", (await llm.stats()).num_running)


def main(argv: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="demo")
    asyncio.run(run(options.parse_args(argv).model))


if __name__ == "__main__":
    main()
