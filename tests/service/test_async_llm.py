"""AsyncLLM, with a fake engine in a process beside it; the text side is real."""

import asyncio

import pytest

import core.compose
from core.errors import EngineDeadError, Problem, RequestError, UserError
from frontends.offline import AsyncLLM, SamplingParams
from tests.service import fake_launch
from tests.service.fake_engine import DIES, FAILS, REFUSED, Setup
from tests.service.test_engine_process import nothing_left_behind  # noqa: F401

FEW = SamplingParams(max_tokens=3)


@pytest.fixture
def compose(monkeypatch):
    """What AsyncLLM composes, and with which settings."""
    asked = []

    def composed(argv, *, overrides):
        asked.append(overrides)
        return fake_launch.plan(setup=overrides.get("setup", Setup()))

    fake_launch.install(monkeypatch, None)
    monkeypatch.setattr(core.compose, "compose", composed)
    return asked


def with_llm(use, **settings):
    async def run():
        async with AsyncLLM("demo", **settings) as llm:
            return await use(llm)

    return asyncio.run(run())


def test_one_engine_answers_all_that_is_asked_of_it(compose):
    async def use(llm):
        outputs = await asyncio.gather(
            llm.generate([65], FEW),
            llm.generate({"prompt": "A"}, SamplingParams(max_tokens=2, n=2)),
            llm.chat([{"role": "user", "content": "Hi"}], FEW, request_id="mine"),
        )
        deltas = [delta async for delta in llm.stream([65], SamplingParams(max_tokens=3, logprobs=1))]
        chatted = [delta async for delta in llm.stream_chat([{"role": "user", "content": "Hi"}], FEW)]
        assert llm.get_tokenizer().encode("A") == outputs[1].prompt_token_ids
        assert llm.get_default_sampling_params() == SamplingParams()
        embedded = await llm.embed("A", pooling="mean")
        assert (embedded.prompt, embedded.embedding) == ("A", pytest.approx([0.8, 0.6]))
        return outputs, deltas, chatted, await llm.stats()

    (ids, text, chat), deltas, chatted, stats = with_llm(use, block_size=16)
    assert compose == [{"model": "demo", "block_size": 16}]
    assert (ids.prompt, ids.outputs[0].text, ids.outputs[0].finish_reason, ids.num_cached_tokens) == (None, "?@A", "length", 3)
    assert (text.prompt, [part.index for part in text.outputs]) == ("A", [0, 1])
    assert chat.request_id == "mine"
    assert "Hi" in chat.prompt
    assert ids.request_id != text.request_id
    assert "".join(delta.text for delta in deltas) == "?@A"  # what came while nobody read comes as one
    assert [token for delta in deltas for token in delta.token_ids] == [66, 67, 68]
    assert ({delta.finish_reason for delta in deltas[:-1]} <= {None}, deltas[-1].finish_reason) == (True, "length")
    assert deltas[0].logprobs[0][66].rank == 2
    assert "".join(delta.text for delta in chatted) == chat.outputs[0].text
    assert stats.requests_finished == {"length": 6}


def test_what_is_cancelled_left_or_aborted_ends_in_the_engine(compose):
    endless = SamplingParams(max_tokens=None)

    async def ended(llm, count):
        while (stats := await llm.stats()).num_running or stats.requests_finished.get("abort", 0) < count:
            await asyncio.sleep(0.01)

    async def use(llm):
        first = asyncio.Event()

        async def reading():
            async for _ in llm.stream([65], endless):
                first.set()

        task = asyncio.create_task(reading())
        await first.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await ended(llm, 1)
        async for _ in llm.stream([65], endless):
            break
        await ended(llm, 2)
        waiting = asyncio.create_task(llm.generate([65], endless, request_id="long"))
        while not await llm.abort("long"):
            await asyncio.sleep(0)
        assert (await waiting).outputs[0].finish_reason == "abort"
        assert not await llm.abort("long")
        assert (await llm.generate([65], FEW)).outputs[0].text == "?@A"

    with_llm(use, setup=Setup(step_seconds=0.002))


def test_what_goes_wrong_is_told_to_the_task_that_asked(compose):
    async def use(llm):
        failed = await llm.generate([FAILS], FEW)
        assert (failed.outputs[0].finish_reason, failed.outputs[0].error) == ("error", "the numbers went wrong")
        for prompt, message in (
            ([REFUSED], "nobody wants this"),
            ([], "the prompt is empty"),
            ({"text": "x"}, "a mapping must"),
        ):
            with pytest.raises(RequestError, match=message):
                await llm.generate(prompt, FEW)
        with pytest.raises(EngineDeadError, match="SIGKILL"):
            await llm.generate([DIES], FEW)

    with_llm(use)


def test_an_engine_that_cannot_be_built_is_the_user_s_to_mend(compose):
    async def never(llm):
        raise AssertionError("there is no engine")

    with pytest.raises(UserError) as caught:
        with_llm(never, setup=Setup(build="user error"))
    assert caught.value.problems[0] == Problem("no such model", "--model", ("name another",))
    with pytest.raises(RuntimeError, match="this AsyncLLM is not running: use it in `async with`, or await start\\(\\) first"):
        asyncio.run(AsyncLLM("demo").generate("x"))


def test_a_start_that_is_cancelled_leaves_no_process(compose, capfd):
    async def run():
        starting = asyncio.create_task(AsyncLLM("demo", setup=Setup(build="block")).start())
        while "loading" not in capfd.readouterr().out:
            await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(run())  # nothing_left_behind looks for the process
