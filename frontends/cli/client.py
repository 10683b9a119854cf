"""A client of an OpenAI-compatible server: just enough to ask one, and to stream text from it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import httpx

from core.errors import ExitCode, Problem, UserError
from frontends.cli.options import api_key
from frontends.cli.own_server import own_server
from frontends.cli.reaching import no_address, untrusted, wants_a_key

_TIMEOUT = httpx.Timeout(600.0, connect=5.0)  # seconds; a long prompt on a small machine may take minutes


class Client:
    """``url`` with or without a final /v1. Every failure is a ``UserError``."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=_TIMEOUT)
        except httpx.InvalidURL:
            raise no_address(url) from None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._http.close()

    def first_model(self) -> str:
        try:
            response = self._http.get("/v1/models")
            self._check(response)
            return str(response.json()["data"][0]["id"])
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        except (ValueError, LookupError, TypeError):
            raise self._stranger() from None

    def ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer as the server writes it, once it is whole."""
        try:
            response = self._http.post(path, json=body)
            self._check(response)
            answer = response.json()
        except UnicodeEncodeError:
            raise _not_utf8() from None
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        except ValueError:
            raise self._stranger() from None
        if not isinstance(answer, dict):
            raise self._stranger()
        return answer

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[str]:
        """The text of the answer as it comes. Leaving early ends the request on the server."""
        try:
            with self._http.stream("POST", path, json={**body, "stream": True}) as response:
                if response.status_code != 200:
                    response.read()
                    self._check(response)
                for line in response.iter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield from self._text(line.removeprefix("data: "))
        except UnicodeEncodeError:
            raise _not_utf8() from None
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _text(self, data: str) -> Iterator[str]:
        try:
            chunk = json.loads(data)
            if "error" in chunk:
                raise self._failed(chunk["error"]["message"])
            for choice in chunk["choices"]:
                text = choice["delta"].get("content") if "delta" in choice else choice["text"]
                if text:
                    yield text
        except (ValueError, LookupError, TypeError, AttributeError):
            raise self._stranger() from None

    def _check(self, response: httpx.Response) -> None:
        if response.status_code == 200:
            return
        if response.status_code == 401:
            raise wants_a_key(self.url)
        try:
            message = str(response.json()["error"]["message"])
        except (ValueError, LookupError, TypeError):
            message = f"status {response.status_code} {response.reason_phrase}".rstrip()
        raise self._failed(message)

    def _failed(self, message: str) -> UserError:
        return UserError(Problem(f"the server refused: {message}", self.url), exit_code=ExitCode.FAILED)

    def _stranger(self) -> UserError:
        problem = Problem(f"what answers at {self.url} does not speak the OpenAI API", "--url", ("check the address and port",))
        return UserError(problem, exit_code=ExitCode.FAILED)

    def _unreachable(self, error: httpx.HTTPError) -> UserError:
        if isinstance(error, httpx.UnsupportedProtocol):
            return no_address(self.url)
        if (strange := untrusted(self.url, str(error))) is not None:
            return strange
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
            problem = Problem(
                f"no server answers at {self.url}",
                "--url",
                ("start one: dovetail serve", "name another with --url", "or talk without one: --model demo"),
            )
        else:
            what = "took too long" if isinstance(error, httpx.TimeoutException) else "broke off"
            problem = Problem(f"the server at {self.url} {what}", "--url", ("look at what the server printed",))
        return UserError(problem, exit_code=ExitCode.FAILED)


def _not_utf8() -> UserError:
    return UserError.of("the text is not valid UTF-8", "", "give it in UTF-8")


@contextmanager
def connected(options: argparse.Namespace, server_flags: Sequence[str]) -> Iterator[Client]:
    """A client of the server that ``options.server_options`` name: one that runs, or one for as long as the block lasts."""
    if options.model is None:
        with Client(options.url, api_key(options)) as client:
            yield client
        return
    with own_server(options.model, server_flags) as url, Client(url, api_key(options)) as client:
        yield client
