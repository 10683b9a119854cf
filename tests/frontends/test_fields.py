"""Fields that vLLM's and FastDeploy's clients send beside OpenAI's."""

import asyncio
import json
import threading
from dataclasses import replace

import pytest

from core.errors import RequestError
from core.text.chat_template import JinjaChatTemplate
from core.text.service import TextService
from tests.frontends.fake_service import ANSWER, BOS, FakeService
from tests.frontends.in_process import posted

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hi"}]
PROMPT = [ord(char) for char in "user: hi\nassistant: "]


class Templated(FakeService):
    def template(self, source):
        return JinjaChatTemplate({"default": source})


def chunks(response):
    return [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line.startswith("data: {")]


def prompt_of(service):
    return service.tokenizer.decode(service.requests[0][1])


# --- prompts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "asked"), [(CHAT, {"messages": HELLO}), (COMPLETE, {"prompt": "unread"})])
def test_a_prompt_may_come_as_tokens(path, asked):
    service = FakeService()
    assert posted(path, {**asked, "prompt_token_ids": [70, 71]}, service).status_code == 200
    assert service.requests[0][1] == [70, 71]


def test_what_clients_send_with_all_their_defaults_is_taken():
    service = FakeService()
    parts = [{"type": "refusal", "refusal": "No."}, {"type": "text", "text": "Well."}]
    body = {"messages": [*HELLO, {"role": "assistant", "content": parts}, *HELLO], "logprobs": False, "top_logprobs": 0}
    assert posted(CHAT, body, service).status_code == 200
    assert prompt_of(service) == "user: hi\nassistant: No.\nWell.\nuser: hi\nassistant: "


def test_many_tokens_are_spelled_beside_the_loop():
    class Watched(FakeService):
        def __init__(self):
            super().__init__()
            self.threads = []
            self.tokenizer.decode = lambda ids, **_: self.threads.append(threading.current_thread()) or "text"

    service = Watched()
    for number in (10, 30_000):
        assert posted("/detokenize", {"tokens": [65] * number}, service).json() == {"prompt": "text"}
    few, many = service.threads
    assert few is threading.main_thread()
    assert many is not few


def test_a_message_is_continued():
    service = FakeService()
    begun = [*HELLO, {"role": "assistant", "content": "Par"}]
    posted(CHAT, {"messages": begun, "continue_final_message": True}, service)
    assert prompt_of(service) == "user: hi\nassistant: Par"
    both = {"messages": begun, "continue_final_message": True, "add_generation_prompt": True}
    empty = {"messages": [*HELLO, {"role": "assistant", "content": ""}], "continue_final_message": True}
    for body, told in ((both, "a message that is continued has no generation"), (empty, "the final message is not in the")):
        refused = posted(CHAT, body, FakeService())
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "continue_final_message")
        assert refused.json()["error"]["message"].startswith(told)


@pytest.mark.parametrize("written", ["s", "e", "end", "of", "|", ">", "_", "i", "user", " s\n"])
def test_a_message_that_looks_like_what_the_template_writes_after_it_is_continued(written):
    service = Templated()
    body = {
        "messages": [*HELLO, {"role": "assistant", "content": written}],
        "continue_final_message": True,
        "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}<|im_end_of_sentence|>{% endfor %}user:",
    }
    posted(CHAT, body, service, trust_request_chat_template=True)
    assert prompt_of(service) == f"user: hi<|im_end_of_sentence|>assistant: {written.strip()}"
    for template in ("{{ messages[0].content }}", "{% for _ in 'ab' %}{{ messages[-1].content }}{% endfor %}"):
        refused = posted(CHAT, {**body, "chat_template": template}, Templated(), trust_request_chat_template=True)
        assert refused.json()["error"]["param"] == "continue_final_message"


def test_a_requests_own_template_is_used_where_the_server_trusts_it():
    service = Templated()
    body = {
        "messages": HELLO,
        "chat_template": "{{ messages[0].content }}|{{ mood }}",
        "chat_template_kwargs": {"mood": "glad"},
    }
    assert posted(CHAT, body, service, trust_request_chat_template=True).status_code == 200
    assert prompt_of(service) == "hi|glad"
    refused = posted(CHAT, body, Templated()).json()["error"]
    assert (refused["param"], refused["message"]) == (
        "chat_template",
        "this server takes no chat templates from requests: it would have to be started with --trust-request-chat-template",
    )


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{% for %}", "the chat template does not parse: line 1: "),
        ("x" * 100_001, "a chat template has at most 100000 characters"),
    ],
)
def test_a_template_that_is_none_is_the_requests_mistake(source, told):
    service = TextService(None, FakeService().tokenizer, None, FakeService().card, None)
    with pytest.raises(RequestError) as refused:
        service.template(source)
    assert refused.value.param == "chat_template"
    assert str(refused.value).startswith(told)


def test_a_stranger_in_the_sandbox_is_refused():
    body = {"messages": HELLO, "chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"}
    refused = posted(CHAT, body, Templated(), trust_request_chat_template=True)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")


# --- tokens of the answer -----------------------------------------------------------------------------------------------


def test_tokens_come_with_a_whole_answer():
    asked = {"return_token_ids": True, "max_tokens": 3, "n": 2}
    ids = [ord(char) for char in "Par"]
    for choice in posted(CHAT, {"messages": HELLO, **asked}, FakeService()).json()["choices"]:
        assert choice["token_ids"] == choice["message"]["completion_token_ids"] == ids
        assert choice["message"]["prompt_token_ids"] == PROMPT
    for number, choice in enumerate(posted(COMPLETE, {"prompt": ["x", "yz"], **asked}, FakeService()).json()["choices"]):
        assert choice["token_ids"] == choice["completion_token_ids"] == ids
        assert choice["prompt_token_ids"] == [BOS, *map(ord, ["x", "yz"][number // 2])]


@pytest.mark.parametrize(("path", "asked"), [(CHAT, {"messages": HELLO}), (COMPLETE, {"prompt": "x"})])
def test_tokens_come_with_a_stream_those_without_text_too(path, asked):
    class Holding(FakeService):
        """Holds every second token's text, as that of a possible stop string is."""

        async def generate(self, *args, **kwargs):
            held = ""
            async for delta in super().generate(*args, **kwargs):
                await asyncio.sleep(0.001)
                held += delta.text
                keep = delta.num_generated_tokens % 2 and delta.finish_reason is None
                yield replace(delta, text="" if keep else held)
                held = held if keep else ""

    service = Holding()
    response = posted(path, {**asked, "return_token_ids": True, "max_tokens": 5, "stream": True}, service)
    entries = [chunk["choices"][0] for chunk in chunks(response)]
    assert entries[0].get("delta", entries[0])["prompt_token_ids"] == service.requests[0][1]
    assert [token for entry in entries for token in entry.get("token_ids", ())] == [ord(char) for char in "Paris"]
    assert "".join(entry.get("delta", {}).get("content") or entry.get("text", "") for entry in entries) == "Paris"


def test_a_chunk_has_as_many_tokens_as_are_asked_for():
    body = {"prompt": "x", "max_tokens": 8, "stream": True, "cache_salt": "delay=0.001", "max_streaming_response_tokens": 3}
    texts = [chunk["choices"][0]["text"] for chunk in chunks(posted(COMPLETE, body, FakeService()))]
    assert [text for text in texts if text] == ["Par", "is ", "is"]


# --- the best of several ------------------------------------------------------------------------------------------------


class Unequal(FakeService):
    """Its third continuation is the likeliest, then the second. Each begins with its number."""

    async def generate(self, *args, **kwargs):
        async for delta in super().generate(*args, **kwargs):
            infos = tuple(replace(info, logprob=-3.0 + delta.index) for info in delta.logprobs)
            text = str(delta.index) if delta.num_generated_tokens == 1 else delta.text
            yield replace(delta, text=text, logprobs=infos)


def test_the_likeliest_are_chosen():
    body = {"prompt": ["a", "b"], "max_tokens": 2, "n": 2, "best_of": 3, "echo": True}
    answer = posted(COMPLETE, body, Unequal()).json()
    assert [choice["text"] for choice in answer["choices"]] == ["a2a", "a1a", "b2a", "b1a"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == 2 * 3 * 2


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"best_of": 1, "n": 2}, "best_of (1) must be at least n (2)"),
        ({"best_of": 2, "stream": True}, "the best of several is known at their end: best_of cannot be streamed"),
        ({"best_of": 1000}, "best_of must be a whole number in [1, 128], got 1000"),
    ],
)
def test_a_best_of_that_cannot_be(fields, told):
    refused = posted(COMPLETE, {"prompt": "x", **fields}, FakeService())
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "best_of")
    assert refused.json()["error"]["message"] == told


def test_openais_own_fields_that_change_no_answer_are_taken():
    fields = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "safety_identifier": "x"}
    assert posted(CHAT, {"messages": HELLO, **fields}, FakeService()).json()["choices"][0]["message"]["content"] == ANSWER


@pytest.mark.parametrize("stop", ["", [], None])
def test_a_stop_that_was_left_empty_stops_nothing(stop):
    service = FakeService()
    assert posted(CHAT, {"messages": HELLO, "stop": stop}, service).status_code == 200
    assert service.requests[0][2].stop == ()


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (CHAT, {"messages": HELLO, "max_tokens": 4.0}),
        (COMPLETE, {"prompt": "x", "max_tokens": 4.0}),
        ("/v1/responses", {"input": "x", "max_output_tokens": 4.0}),
        ("/v1/messages", {"model": "fake", "messages": HELLO, "max_tokens": 4.0}),
    ],
)
def test_a_whole_number_may_be_written_with_a_point(path, asked):
    service = FakeService()
    assert posted(path, {**asked, "top_k": 3.0}, service).status_code == 200
    params = service.requests[0][2]
    assert (params.max_tokens, params.top_k, type(params.max_tokens)) == (4, 3, int)


# --- words that may not be said -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "asked"), [(CHAT, {"messages": HELLO}), (COMPLETE, {"prompt": "x"})])
def test_bad_words_are_told_as_tokens_in_every_spelling(path, asked):
    service = FakeService()
    body = {**asked, "bad_words": ["no"], "bad_words_token_ids": [5, [6, 7]]}
    assert posted(path, body, service).status_code == 200
    no = tuple(map(ord, "no"))
    assert set(service.requests[0][2].bad_words) == {no, (32, *no), (5,), (6, 7)}


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"bad_words": [" "]}, "bad_words", "each of bad_words must be a word"),
        ({"bad_words": ["a" * 257]}, "bad_words", "each of bad_words has at most 256 characters, not 257"),
        ({"bad_words": "no"}, "bad_words", "bad_words: input should be a valid array"),
        ({"bad_words_token_ids": ["no"]}, "bad_words_token_ids", "bad_words_token_ids: must be a list of token ids, or of"),
        ({"bad_words_token_ids": [0x110000]}, "bad_words", "1114112 is not a token id of this model"),
    ],
)
def test_bad_words_that_are_none(fields, param, told):
    refused = posted(CHAT, {"messages": HELLO, **fields}, FakeService()).json()["error"]
    assert refused["param"] == param
    assert refused["message"].startswith(told)
