"""Official clients against the application in this process, without a network."""

import asyncio
from contextlib import asynccontextmanager

import anthropic
import httpx2
import openai

from frontends.openai_http.app import create_app
from frontends.openai_http.settings import HttpSettings


@asynccontextmanager
async def web_client(service, **section):
    app = create_app(service, HttpSettings(**section))
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@asynccontextmanager
async def openai_client(service, **section):
    async with web_client(service, **section) as web:
        yield openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=web, max_retries=0)


@asynccontextmanager
async def anthropic_client(service, **section):
    async with web_client(service, **section) as web:
        yield anthropic.AsyncAnthropic(base_url="http://test", api_key="none", http_client=web, max_retries=0)


def asked(client, service, use, **section):
    """What ``use(client)`` gives."""

    async def run():
        async with client(service, **section) as opened:
            return await use(opened)

    return asyncio.run(run())


def posted(path, body, service, headers=None, **section):
    async def use(web):
        return await web.post(path, json=body, headers=headers)

    return asked(web_client, service, use, **section)
