"""The engine inside your own program, without a server.

::

    from frontends.offline import LLM, SamplingParams

    with LLM("demo") as llm:
        for output in llm.generate(["The capital of France is", "2 + 2 ="], SamplingParams(temperature=0, max_tokens=8)):
            print(output.prompt, "->", output.outputs[0].text)

``AsyncLLM`` is the same for programs with an event loop of their own: answers stream, requests come and go, and the engine
runs in a process beside yours.

Importing this imports no torch; making an ``LLM`` does.
"""

from core.interfaces.request import Grammar, SamplingParams
from frontends.offline.async_llm import AsyncLLM
from frontends.offline.llm import LLM
from frontends.offline.outputs import CompletionDelta, CompletionOutput, EmbeddingOutput, Logprob, RequestOutput

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionDelta",
    "CompletionOutput",
    "EmbeddingOutput",
    "Grammar",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
]
