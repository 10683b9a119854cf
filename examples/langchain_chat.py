"""LangChain against a server: python examples/langchain_chat.py [--url URL]. Needs: pip install langchain-openai."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI


def main(argv: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--url", default="http://127.0.0.1:8000")
    options.add_argument("--model", default="demo", help="the name it is served under")
    given = options.parse_args(argv)

    model = ChatOpenAI(model=given.model, base_url=f"{given.url}/v1", api_key="none", temperature=0, max_tokens=32)
    prompt = ChatPromptTemplate([("system", "You answer in one sentence."), ("human", "What is {thing}?")])
    chain = prompt | model | StrOutputParser()

    print("answer:", chain.invoke({"thing": "a lighthouse"}))
    print("stream: ", end="")
    for piece in chain.stream({"thing": "snow"}):
        print(piece, end="", flush=True)
    print()
    for thing, answer in zip(("tea", "rain"), chain.batch([{"thing": "tea"}, {"thing": "rain"}]), strict=True):
        print(f"{thing}: {answer}")


if __name__ == "__main__":
    main()
