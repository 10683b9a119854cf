"""Prefix caching: ways to say it, and how much sooner a known prompt is answered."""

import time
import urllib.request

import openai
import pytest

from core.compose import compose
from core.compose.probe import DeviceProbe
from core.errors import UserError
from tests.must_show.served import serving


def chosen(*flags, **overrides):
    return compose(["--model", "random:tiny", *flags], env={}, overrides=overrides).chosen("cache_policy").name


def test_ways_to_say_it():
    assert chosen() == "private"
    assert chosen("--enable-prefix-caching") == chosen("--plugins", "cache_prefix") == "prefix"
    assert chosen("--cache-policy", "prefix") == chosen(enable_prefix_caching=True) == "prefix"
    assert chosen("--no-enable-prefix-caching") == chosen(enable_prefix_caching=False) == "private"
    plan = compose(["--model", "random:tiny", "--enable-prefix-caching", "--no-enable-output-caching"], env={})
    assert plan.sections["cache_prefix"] == {"cache_outputs": False, "swap_space": 0.0}


def test_swap_space_without_prefix_caching_is_refused_and_what_changes_nothing_is_not():
    with pytest.raises(UserError, match="swap_space is 50 GiB for pages that prefix caching gives up, and prefixes are not"):
        compose(["--model", "random:tiny", "--swap-space", "50"], env={})
    assert compose(["--model", "random:tiny", "--enable-output-caching"], env={}).chosen("cache_policy").name == "private"


def test_more_swap_space_than_the_host_has_is_a_warning_that_names_the_bound():
    probe = DeviceProbe("a CPU", 8, ("avx2",), 16 << 30, 10 << 30)
    plan = compose(
        ["--model", "random:tiny", "--kv-cache-memory", "1", "--enable-prefix-caching", "--swap-space", "50"],
        env={},
        probe=probe,
    )
    spare = plan.facts["memory.host_spare_gib"]
    assert 7.5 < spare < 9
    [warning] = [text for text in map(str, plan.warnings) if "swap_space" in text]
    assert f"swap_space is 50 GiB, and the host has {spare:g} GiB to spare: no more than these are used" in warning


TALE = "Once upon a time, at the foot of a mountain, there lived a miller who had {} daughters and {} sons. "


def tale(number):
    """About a thousand tokens."""
    return "".join(TALE.format(number * 100 + i, i + 2) for i in range(40))


def ask(client, prompt):
    """Seconds to the first token, the text, the usage."""
    began, first, text, usage = time.monotonic(), None, "", None
    for chunk in client.completions.create(
        model="demo", prompt=prompt, temperature=0, max_tokens=8, stream=True, stream_options={"include_usage": True}
    ):
        first = first or time.monotonic() - began
        text += chunk.choices[0].text if chunk.choices else ""
        usage = chunk.usage or usage
    return first, text, usage


@pytest.fixture(scope="module")
def warm():
    """A server and its client; it has pages for one tale."""
    pages = ("--num-gpu-blocks-override", "20", "--swap-space", "1")
    with (
        serving("--enable-prefix-caching", "--max-model-len", "1280", *pages) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        client.completions.create(model="demo", prompt="Warm up.", max_tokens=4)
        yield server, client


def speedup(client, enough, numbers, between):
    """How much sooner the first token of a known prompt comes: three tries, for others may use this machine too."""
    best = 0
    for number in numbers:
        unknown, text, usage = ask(client, tale(number))
        if between:
            ask(client, tale(number + 1))
        known, again, usage_again = ask(client, tale(number))
        assert 900 < usage.prompt_tokens < 1200
        assert usage.prompt_tokens_details.cached_tokens == 0
        assert usage_again.prompt_tokens_details.cached_tokens == (usage.prompt_tokens - 1) // 64 * 64
        assert again == text
        best = max(best, unknown / known)
        if best >= enough:
            break
    return best


@pytest.mark.demo
@pytest.mark.perf
def test_time_to_first_token_of_a_known_prompt(warm):
    server, client = warm
    assert speedup(client, 5, (6, 7, 8), between=False) >= 5
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        metrics = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[:1] != "#")
    assert float(metrics["dovetail_cached_prompt_tokens_total"]) >= 900
    answer = client.completions.create(model="demo", prompt=tale(6), max_tokens=1, extra_body={"cache_salt": "another"})
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


@pytest.mark.demo
@pytest.mark.perf
def test_time_to_first_token_after_being_swapped_out_and_in(warm):
    _, client = warm
    assert speedup(client, 2, (0, 2, 4), between=True) >= 2
