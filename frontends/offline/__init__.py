"""The engine inside your own program, without a server.

::

    from frontends.offline import LLM, SamplingParams

    with LLM("demo") as llm:
        for output in llm.generate(["The capital of France is", "2 + 2 ="], SamplingParams(temperature=0, max_tokens=8)):
            print(output.prompt, "->", output.outputs[0].text)

Importing this imports no torch; making an ``LLM`` does.
"""

from core.interfaces.request import Grammar, SamplingParams
from frontends.offline.llm import LLM
from frontends.offline.outputs import CompletionOutput, Logprob, RequestOutput

__all__ = ["LLM", "CompletionOutput", "Grammar", "Logprob", "RequestOutput", "SamplingParams"]
