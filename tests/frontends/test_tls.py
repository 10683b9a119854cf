"""https, with a certificate for localhost that nobody else has signed."""

import asyncio
import ssl
from pathlib import Path

import httpx
import pytest

from core.errors import ExitCode, UserError
from frontends.openai_http.server import OpenAIServer
from frontends.openai_http.settings import HttpSettings
from tests.frontends.fake_service import FakeService

PEM = str(Path(__file__).with_name("localhost.pem"))  # the certificate, and its key


def test_a_server_with_a_certificate_speaks_https(capsys):
    server = OpenAIServer(HttpSettings(port=0, ssl_certfile=PEM), drain_timeout=1.0)
    answers = []

    class Asked(FakeService):
        async def wait_dead(self):
            url = ""
            while not url:
                await asyncio.sleep(0)
                url = capsys.readouterr().out.removeprefix("listening on ").strip()
            async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=PEM)) as client:
                answers.append((url, await client.get(f"{url}/health")))
            server.stop()
            return await super().wait_dead()

    assert server.run(Asked()) is ExitCode.OK
    [(url, answer)] = answers
    assert url.startswith("https://127.0.0.1:")
    assert answer.json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("fields", "what", "where"),
    [
        ({"ssl_keyfile": PEM}, "a private key needs its certificate", "openai_http.ssl_keyfile"),
        ({"ssl_certfile": __file__}, "the certificate and its key cannot be used: ", "openai_http.ssl_certfile"),
        ({"ssl_certfile": "no.pem"}, "no.pem cannot be read: no such file or directory", "openai_http.ssl_certfile"),
        (
            {"ssl_certfile": PEM, "ssl_keyfile": "no.pem"},
            "no.pem cannot be read: no such file or directory",
            "openai_http.ssl_keyfile",
        ),
    ],
)
def test_files_that_are_none_are_told_before_a_port_is_taken(fields, what, where):
    with pytest.raises(UserError) as refused:
        OpenAIServer(HttpSettings(port=0, **fields), drain_timeout=1.0)
    [problem] = refused.value.problems
    assert problem.what.startswith(what)
    assert problem.where == where
