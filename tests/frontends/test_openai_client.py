"""The official client against a served fake: what users' programs see."""

import asyncio

import openai
import pytest

from tests.frontends.fake_service import ANSWER

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat_answers_whole(client):
    answer = client.chat.completions.create(model="fake", messages=HELLO)
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint.startswith("fp_")
    assert answer.model == "fake"
    prompt = len("user: hello\nassistant: ")
    assert answer.usage.prompt_tokens == prompt
    assert answer.usage.completion_tokens == len(ANSWER)
    assert answer.usage.total_tokens == prompt + len(ANSWER)
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


def test_chat_streams_role_then_text_then_finish_then_usage(client):
    chunks = list(
        client.chat.completions.create(model="fake", messages=HELLO, stream=True, stream_options={"include_usage": True})
    )
    *spoken, finish, usage = chunks
    assert (spoken[0].choices[0].delta.role, spoken[0].choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content for chunk in spoken) == ANSWER
    assert all(chunk.choices[0].finish_reason is None and chunk.usage is None for chunk in spoken)
    assert (finish.choices[0].finish_reason, finish.choices[0].delta.content) == ("stop", None)
    assert usage.choices == []
    assert usage.usage.completion_tokens == len(ANSWER)
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_usage_is_not_sent_unless_asked_for(client):
    chunks = list(client.chat.completions.create(model="fake", messages=HELLO, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_continuous_usage_grows_with_the_text(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        client.completions.create(
            model="fake", prompt="x", stream=True, stream_options=options, max_tokens=4, extra_body={"cache_salt": "delay=0.02"}
        )
    )
    assert [chunk.usage.completion_tokens for chunk in chunks] == [1, 2, 3, 4, 4, 4]
    assert chunks[-1].choices == []


@pytest.mark.parametrize("stream", [False, True])
def test_n_choices_of_several_prompts_are_numbered_prompt_by_prompt(client, stream):
    answer = client.completions.create(model="fake", prompt=["a", "bc"], n=2, max_tokens=5, echo=True, stream=stream)
    texts, finishes = dict.fromkeys(range(4), ""), {}
    for part in answer if stream else [answer]:
        for choice in part.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                finishes[choice.index] = choice.finish_reason
    assert texts == {0: "aParis", 1: "aParis", 2: "bcParis", 3: "bcParis"}
    assert finishes == dict.fromkeys(range(4), "length")
    if not stream:
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2 + 3, 4 * 5)  # each prompt has a bos


def test_token_prompts_are_taken_as_they_are_and_echoed_as_text(client):
    ids = [ord(char) for char in "Hi"]
    assert client.completions.create(model="fake", prompt=ids, max_tokens=1, echo=True).choices[0].text == "HiP"
    answer = client.completions.create(model="fake", prompt=[ids, ids], max_tokens=1)
    assert [choice.text for choice in answer.choices] == ["P", "P"]
    assert answer.usage.prompt_tokens == 4


def test_stop_string_ends_the_text(client):
    answer = client.chat.completions.create(model="fake", messages=HELLO, stop=[" capital", "zzz"])
    assert answer.choices[0].message.content == "Paris is the"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].model_extra["stop_reason"] == " capital"


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs(client, stream):
    answer = client.chat.completions.create(
        model="fake", messages=HELLO, logprobs=True, top_logprobs=2, max_completion_tokens=3, stream=stream
    )
    tokens = []
    for part in answer if stream else [answer]:
        for choice in part.choices:
            tokens += choice.logprobs.content if choice.logprobs else []
    assert [(token.token, token.bytes, token.logprob) for token in tokens] == [
        ("P", [80], -0.25),
        ("a", [97], -0.25),
        ("r", [114], -0.25),
    ]
    assert [(top.token, top.logprob) for top in tokens[0].top_logprobs] == [("P", -0.25), ("Q", -1.25)]


def test_chat_logprobs_without_alternatives(client):
    answer = client.chat.completions.create(model="fake", messages=HELLO, logprobs=True, max_tokens=1)
    assert answer.choices[0].logprobs.content[0].top_logprobs == []


def test_completion_logprobs_in_the_older_style(client):
    logprobs = client.completions.create(model="fake", prompt="x", max_tokens=3, logprobs=2).choices[0].logprobs
    assert logprobs.tokens == ["P", "a", "r"]
    assert logprobs.token_logprobs == [-0.25] * 3
    assert logprobs.top_logprobs[0] == {"P": -0.25, "Q": -1.25}
    assert logprobs.text_offset == [0, 1, 2]


def test_models(client):
    [model] = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("fake", "model", "dovetail")
    assert model.model_extra["max_model_len"] == 500
    assert client.models.retrieve("fake").id == "fake"
    with pytest.raises(openai.NotFoundError, match="'org/other' is not served here"):
        client.models.retrieve("org/other")


def test_errors_are_the_clients_own_kinds(client):
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert (not_found.value.code, not_found.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="fake", messages=HELLO, temperature=-1)
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.RateLimitError) as busy:
        client.chat.completions.create(model="fake", messages=HELLO, stream=True, extra_body={"cache_salt": "refuse=429"})
    assert busy.value.code == "rate_limit_exceeded"
    assert busy.value.response.headers["retry-after"] in ("1", "2")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("error_after=3", "the kernel overflowed"),
        ("break_after=3", "an internal error; the server's log has the cause"),
    ],
)
def test_an_error_in_mid_stream_is_told_and_ends_it(client, script, told):
    stream = client.completions.create(model="fake", prompt="x", stream=True, extra_body={"cache_salt": f"delay=0.01 {script}"})
    texts = []
    with pytest.raises(openai.APIError, match=told):
        texts.extend(chunk.choices[0].text for chunk in stream)
    assert "".join(texts) == "Par"


def test_many_async_streams_at_once_stay_apart(served):
    async def one(client, number):
        text = ""
        stream = await client.completions.create(
            model="fake",
            prompt=f"<{number}>",
            echo=True,
            max_tokens=20,
            stream=True,
            extra_body={"cache_salt": "delay=0.001"},
        )
        async for chunk in stream:
            text += chunk.choices[0].text
        return text

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(one(client, number) for number in range(32)))

    assert asyncio.run(all_of_them()) == [f"<{number}>{ANSWER[:20]}" for number in range(32)]


def test_request_id_names_the_answer(client):
    answer = client.completions.with_raw_response.create(model="fake", prompt="x", extra_body={"request_id": "mine-7"})
    assert answer.parse().id == "cmpl-mine-7"
    assert answer.headers["x-request-id"] == "cmpl-mine-7"
