"""A plan served: engine process, front end, exit codes, signals."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest
import tokenizers

import core.compose.build
import core.engine.client
from core import launch
from core.compose.plan import Plan
from core.errors import EngineDeadError, ExitCode, Problem, UserError
from core.interfaces.request import SamplingParams
from tests.service import fake_launch
from tests.service.fake_engine import Setup
from tests.service.fake_launch import Door, one_text, plan
from tests.service.test_engine_process import NOTICED_WITHIN, nothing_left_behind  # noqa: F401


def served(monkeypatch, visit, plan: Plan):
    door = Door(visit)
    fake_launch.install(monkeypatch, door)
    return launch.serve(plan), door.found


async def never(service):
    raise AssertionError("the front end must not run")


def test_a_plan_is_served_and_the_engine_is_ended(monkeypatch, caplog):
    assert served(monkeypatch, one_text, plan()) == (ExitCode.OK, "?@A")  # ids 66 to 68, bytes from id 3 on
    assert [record.getMessage().split(" s: ")[1] for record in caplog.records if "ready in" in record.getMessage()] == [
        "random:tiny on cpu"
    ]


def test_the_card_tells_what_is_served(monkeypatch):
    async def visit(service):
        return service.card, service.chat_template.render([{"role": "user", "content": "Hi"}])

    _, (card, prompt) = served(monkeypatch, visit, plan(served_model_name=("a", "b"), setup=Setup(at_once=7)))
    assert (card.name, card.served_names, card.max_model_len, card.vocab) == ("random:tiny", ("a", "b"), 2048, 512)
    assert card.at_once == 7
    assert abs(card.created - time.time()) < 60
    assert "Hi" in prompt
    _, (card, _) = served(monkeypatch, visit, plan())
    assert card.served_names == ("random:tiny",)


def test_what_the_user_can_mend_comes_through_from_the_engine_s_process(monkeypatch):
    with pytest.raises(UserError) as caught:
        served(monkeypatch, never, plan(setup=Setup(build="user error")))
    assert caught.value.problems[0] == Problem("no such model", "--model", ("name another",))


def test_a_front_end_that_cannot_be_made_is_told_before_anything_is_fetched_or_loaded(monkeypatch):
    def taken(plan, manager):
        raise UserError.of("port 8000 is in use")

    def never(*arguments, **settings):
        raise AssertionError("too early")

    monkeypatch.setattr(core.compose.build, "create_front_end", taken)
    monkeypatch.setattr(core.compose.build, "fetched", never)
    monkeypatch.setattr(core.engine.client, "EngineClient", never)
    with pytest.raises(UserError, match="port 8000 is in use"):
        launch.serve(plan())


def test_weights_that_may_not_be_read_are_the_users_to_mend(monkeypatch):
    def denied(plan):
        raise PermissionError(13, "Permission denied", "/models/secret/model.safetensors")

    monkeypatch.setattr(core.compose.build, "build_engine", denied)
    with pytest.raises(UserError, match=r"^/models/secret/model\.safetensors may not be read or written by this user"):
        launch.build_here(plan())


@pytest.mark.parametrize("how", ["well", "user error", "crash"])
def test_the_front_end_is_closed_whether_it_ran_or_not(monkeypatch, how):
    closed = []
    door = Door(one_text)
    door.close = lambda: closed.append(door)
    fake_launch.install(monkeypatch, door)
    with contextlib.suppress(UserError):
        launch.serve(plan(setup=Setup(build=how)))
    assert closed == [door]


@pytest.mark.parametrize(
    ("build", "message"),
    [("crash", "the engine broke: ZeroDivisionError: the builder broke"), ("die", "was ended by SIGKILL (out of memory?)")],
)
def test_an_engine_that_does_not_come_up_is_told_and_has_its_exit_code(monkeypatch, caplog, build, message):
    assert served(monkeypatch, never, plan(setup=Setup(build=build))) == (ExitCode.ENGINE_DIED, None)
    assert message in caplog.text


def test_an_engine_that_dies_while_serving_has_its_exit_code(monkeypatch):
    async def visit(service):
        with pytest.raises(EngineDeadError):
            await anext(service.generate([5], SamplingParams(), request_id="r", cache_salt="dies"))
        return await service.wait_dead()

    code, reason = served(monkeypatch, visit, plan())
    assert code is ExitCode.ENGINE_DIED
    assert "SIGKILL" in reason


def test_an_engine_is_started_again_as_configured(monkeypatch):
    async def visit(service):
        with pytest.raises(EngineDeadError):
            await anext(service.generate([5], SamplingParams(), request_id="r", cache_salt="dies"))
        while not service.health().ready:
            await asyncio.sleep(0.01)
        return await one_text(service)

    assert served(monkeypatch, visit, plan(engine_restarts=1)) == (ExitCode.OK, "?@A")


def test_a_front_end_that_raises_leaves_no_engine(monkeypatch):
    async def visit(service):
        raise UserError.of("port 80 may not be listened on", "openai_http.port")

    with pytest.raises(UserError):
        served(monkeypatch, visit, plan())


@pytest.mark.parametrize(
    ("origins", "where"),
    [
        ({}, "openai_http.port"),
        ({"openai_http.port": "demo.toml:3"}, "demo.toml:3"),
        ({"openai_http.port": "default"}, "default of openai_http.port"),
    ],
)
def test_a_setting_that_turns_out_wrong_is_told_with_its_origin(monkeypatch, origins, where):
    async def visit(service):
        raise UserError.of("port 80 may not be listened on", "openai_http.port", "--port 8000")

    with pytest.raises(UserError) as caught:
        served(monkeypatch, visit, dataclasses.replace(plan(), origins=origins))
    assert caught.value.problems == (Problem("port 80 may not be listened on", where, ("--port 8000",)),)


@pytest.mark.parametrize(("build", "word"), [("block", "loading"), ("well", "running")])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_no_front_end_hears_end_the_launch_in_order(build, word, number):
    with subprocess.Popen(
        [sys.executable, "-c", f"from tests.service.fake_launch import main; main({build!r})"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as launched:
        assert launched.stdout.readline().strip() == word
        launched.send_signal(number)
        sent = time.monotonic()
        rest, errors = launched.communicate(timeout=20)  # until nobody holds the pipes: the engine has them too
        assert time.monotonic() - sent < 2 * NOTICED_WITHIN
    assert (rest, launched.returncode) == ("code 0\n", 0)
    assert "Traceback" not in errors


def test_the_engine_in_this_process(monkeypatch, caplog):
    fake_launch.install(monkeypatch, None)
    local = launch.open_local(dataclasses.replace(plan(), warnings=(Problem("that is slow", "dtype"),)))
    assert caplog.messages == ["that is slow\n  set by: dtype"]
    try:
        [[part]] = local.generate([(local.tokenizer.encode("A", add_special_tokens=False), SamplingParams(max_tokens=3))])
        assert part.text == "BCD"
    finally:
        local.close()


def test_another_tokenizer_than_the_models_own(monkeypatch, tmp_path):
    library = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<unk>": 0, "three": 3, "words": 4, "more": 5}, unk_token="<unk>")
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.save(str(tmp_path / "tokenizer.json"))

    async def visit(service):
        return service.tokenizer.encode("three more words"), service.chat_template is not None

    _, found = served(monkeypatch, visit, plan(tokenizer=str(tmp_path)))
    assert found == ([3, 5, 4], True)


def test_a_tokenizer_that_is_not_there(monkeypatch):
    with pytest.raises(UserError) as error:
        served(monkeypatch, never, dataclasses.replace(plan(tokenizer="./nowhere"), origins={"tokenizer": "--tokenizer"}))
    assert str(error.value) == (
        "there is no folder ./nowhere for the tokenizer\n"
        "  set by: --tokenizer\n"
        "  remedy: give a folder that has tokenizer.json or tokenizer.model, or OWNER/NAME on a hub"
    )
