"""The real engine, a tiny random model: offline, and served with its engine killed."""

import os
import signal
import time

import psutil
import pytest

from core import launch
from core.compose import compose
from core.errors import EngineDeadError, ExitCode, RequestError, UserError
from core.interfaces.request import SamplingParams
from frontends.offline import LLM
from tests.service.fake_launch import Door
from tests.service.test_engine_process import NOTICED_WITHIN, nothing_left_behind  # noqa: F401

SMALL = {"dtype": "float32", "device": "cpu", "threads": 1, "max_num_seqs": 8, "max_model_len": 256, "block_size": 16}
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(compute_backend):
    with LLM("random:tiny", backend=compute_backend, **SMALL) as llm:
        yield llm


def test_prompts_of_every_kind(llm):
    ids = llm.get_tokenizer().encode("Hello")
    text, given, plain = llm.generate(["Hello", {"prompt_token_ids": ids}, ids], GREEDY)
    assert len(text.outputs[0].token_ids) == 24
    assert text.outputs[0] == given.outputs[0] == plain.outputs[0]
    assert text.outputs[0].finish_reason == "length"
    assert (text.prompt, text.prompt_token_ids, given.prompt) == ("Hello", ids, None)


def test_alone_or_among_others_the_answer_is_the_same(llm):
    prompts = [f"prompt number {i} " * (1 + i % 3) for i in range(20)]
    together = llm.generate(prompts, GREEDY)
    alone = [llm.generate(prompt, GREEDY)[0] for prompt in prompts]
    assert [output.outputs[0].token_ids for output in together] == [output.outputs[0].token_ids for output in alone]


def test_continuations_of_a_seed_can_be_had_one_by_one(llm):
    several = llm.generate("Hello", SamplingParams(n=3, seed=7, max_tokens=12))[0].outputs
    singly = [llm.generate("Hello", SamplingParams(seed=7 + i, max_tokens=12))[0].outputs[0] for i in range(3)]
    assert [part.token_ids for part in several] == [part.token_ids for part in singly]
    assert len({tuple(part.token_ids) for part in several}) == 3


def test_logprobs(llm):
    part = llm.generate("Hello", SamplingParams(temperature=0, max_tokens=4, logprobs=3, ignore_eos=True))[0].outputs[0]
    assert len(part.logprobs) == 4
    for token, found in zip(part.token_ids, part.logprobs, strict=True):
        assert found[token].rank == 1
        assert len(found) == 3
        assert sorted(entry.rank for entry in found.values()) == [1, 2, 3]
        assert found[token].logprob == max(entry.logprob for entry in found.values()) < 0
        assert found[token].decoded_token == llm.get_tokenizer().token_text(token)
    chosen = [found[token].logprob for token, found in zip(part.token_ids, part.logprobs, strict=True)]
    assert part.cumulative_logprob == pytest.approx(sum(chosen))


def test_chat(llm):
    [output] = llm.chat([{"role": "user", "content": "Hi"}], GREEDY)
    assert "Hi" in output.prompt
    assert len(output.outputs[0].token_ids) == 24


def test_every_page_is_free_afterwards(llm):
    llm.generate(["Hello"] * 30, GREEDY)
    stats = llm.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.pages_free + stats.pages_cached == stats.pages_total


def test_a_wrong_prompt_is_named(llm):
    with pytest.raises(RequestError, match=r"^prompt 1: the prompt has 300 tokens; at most 255 fit"):
        llm.generate(["Hello", [5] * 300], GREEDY)


def test_a_mistyped_setting_is_told_with_the_one_that_was_meant():
    with pytest.raises(UserError) as caught:
        LLM("random:tiny", max_model_length=64)
    assert "max_model_length" in str(caught.value)
    assert "max_model_len'" in str(caught.value)
    assert "LLM(" in str(caught.value)


def plan(**settings):
    return compose([], overrides={"model": "random:tiny", **SMALL, **settings})


def test_served_texts_are_the_offline_ones(llm, monkeypatch):
    [expected] = llm.generate("Hello", GREEDY)

    async def visit(service):
        ids = service.tokenizer.encode("Hello")
        deltas = service.generate(ids, GREEDY, request_id="r")
        return "".join([delta.text async for delta in deltas]), (await service.stats()).generation_tokens

    door = Door(visit)
    monkeypatch.setattr("core.compose.build.create_front_end", lambda plan, manager: door)
    assert launch.serve(plan()) is ExitCode.OK
    assert door.found == (expected.outputs[0].text, 24)


def test_kill_9_of_the_real_engine_while_it_answers(monkeypatch):
    others = set(psutil.Process().children())  # of other tests in this process

    async def visit(service):
        deltas = service.generate([5], SamplingParams(max_tokens=250, ignore_eos=True), request_id="r")
        await anext(deltas)
        [engine] = set(psutil.Process().children()) - others
        os.kill(engine.pid, signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(EngineDeadError):
            async for _ in deltas:
                pass
        await service.wait_dead()
        return time.monotonic() - killed, service.health().alive

    door = Door(visit)
    monkeypatch.setattr("core.compose.build.create_front_end", lambda plan, manager: door)
    assert launch.serve(plan()) is ExitCode.ENGINE_DIED
    seconds, alive = door.found
    assert seconds < NOTICED_WITHIN
    assert not alive
