"""The official OpenAI client against a server: python examples/openai_client.py [--url URL]. Start one with: dovetail serve."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from openai import OpenAI


def main(argv: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--url", default="http://127.0.0.1:8000")
    url = options.parse_args(argv).url

    client = OpenAI(base_url=url.rstrip("/").removesuffix("/v1") + "/v1", api_key="none")
    model = client.models.list().data[0].id

    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "What is the capital of France?"}], max_tokens=32
    )
    print("answer:", answer.choices[0].message.content)

    print("stream: ", end="")
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Tell me about the sea."}], max_tokens=32, stream=True
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

    completion = client.completions.create(model=model, prompt="Once upon a time", max_tokens=16, logprobs=1)
    print("completion:", completion.choices[0].text)
    assert completion.usage is not None
    print("tokens:", completion.usage.completion_tokens)


if __name__ == "__main__":
    main()
