"""LangChain's ChatOpenAI, unchanged, against the application in this process."""

import asyncio

from langchain_openai import ChatOpenAI

from tests.frontends.fake_service import ANSWER, FakeService
from tests.frontends.in_process import web_client


def test_it_answers_and_streams():
    async def run():
        service = FakeService()
        async with web_client(service) as web:
            model = ChatOpenAI(
                model="fake", base_url="http://test/v1", api_key="none", http_async_client=web, temperature=0.5, max_tokens=9
            )
            whole = await model.ainvoke([("system", "be brief"), ("human", "hi")])
            pieces = [piece async for piece in model.astream("hi")]
            return service, whole, pieces

    service, whole, pieces = asyncio.run(run())
    assert whole.content == ANSWER[:9]
    assert whole.usage_metadata["output_tokens"] == 9
    assert "".join(piece.content for piece in pieces) == ANSWER[:9]
    assert pieces[-1].response_metadata or any(piece.response_metadata.get("finish_reason") for piece in pieces)
    assert [request[2].temperature for request in service.requests] == [0.5, 0.5]
