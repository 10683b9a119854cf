"""A newcomer types one line and chats, through the official client, with the demo model."""

import time

import openai
import pytest

from tests.must_show.served import serving

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def demo():
    with serving() as server:  # no flags: the demo
        yield server


@pytest.fixture
def client(demo):
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.demo
def test_the_capital_of_france(client):
    answer = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, max_tokens=40)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.demo
def test_the_capital_of_france_streamed(client):
    chunks = list(
        client.chat.completions.create(
            model="demo",
            messages=QUESTION,
            temperature=0,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert "Paris" in text
    assert sum(1 for chunk in chunks for choice in chunk.choices if choice.delta.content) > 3, "it came in one piece"
    assert chunks[-1].usage.completion_tokens > 3


@pytest.mark.demo
def test_streamed_and_whole_are_the_same_text(client):
    asked = {"model": "demo", "messages": QUESTION, "temperature": 0.7, "seed": 11, "max_tokens": 32}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    chunks = client.chat.completions.create(**asked, stream=True)
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == whole


@pytest.mark.demo
def test_logprobs_n_and_stop(client):
    answer = client.completions.create(
        model="demo", prompt="Count: one, two, three,", temperature=0.8, seed=3, n=3, logprobs=2, max_tokens=12, stop=["\n"]
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert "\n" not in choice.text
        assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs)
        assert all(logprob <= 0 for logprob in choice.logprobs.token_logprobs)


@pytest.mark.demo
@pytest.mark.perf
def test_ready_within_8_seconds_when_the_model_is_cached(demo):
    began = time.monotonic()
    with serving() as server:
        ready = time.monotonic() - began
        assert server.terminate() == 0
    assert ready < 8, f"{ready:.1f} s"


@pytest.mark.demo
def test_config_file_and_plugins_flag_are_equal_ways_in():
    answers = []
    for flags in (
        ["--config", "examples/demo.toml"],
        ["--plugins", "openai_http", "--model", "demo", "--max-model-len", "2048"],
    ):
        with serving(*flags) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            answer = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, max_tokens=24)
            answers.append(answer.choices[0].message.content)
            assert client.models.list().data[0].id == "demo"
    assert answers[0] == answers[1]
    assert "Paris" in answers[0]
