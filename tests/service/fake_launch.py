"""A launch whose engine and front end are fakes and whose text side is real."""

import asyncio
import signal
import sys

import pytest

import core.compose.build
from core import launch
from core.compose.plan import Choice, Plan
from core.errors import ExitCode
from core.interfaces.frontend import FrontEnd
from core.interfaces.model import DecoderSpec, ModelFolder
from core.interfaces.request import SamplingParams
from tests.service import fake_engine

SPEC = DecoderSpec(
    num_layers=2,
    hidden=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate=128,
    vocab=512,
    max_positions=2048,
    rope_theta=1e4,
    rope_style="half",
    norm_eps=1e-5,
    tied_head=True,
)


def plan(**settings):
    known = {"model": "random:tiny", "served_model_name": (), "chat_template": None, "engine_restarts": 0, "step_timeout": 0}
    known |= {"log_level": "info", "log_format": "text"}
    return Plan(
        settings={**known, "setup": fake_engine.Setup(), **settings},
        sections={},
        origins={},
        choices=(Choice("checkpoint_format", "random", "decoder_models", "here", "default"),),
        facts={"settings.max_model_len": 2048, "device.kind": "cpu"},
        model=ModelFolder("random:tiny", None, "random"),
        spec=SPEC,
    )


def build(plan, manager=None):
    return fake_engine.build(plan.settings["setup"])


def install(monkeypatch, door):
    """Put the fakes where ``core.launch`` looks for the real ones."""
    monkeypatch.setattr(core.compose.build, "create_front_end", lambda plan, manager: door)
    monkeypatch.setattr(core.compose.build, "build_engine", build)
    monkeypatch.setattr(launch, "build_here", build)


class Door(FrontEnd):
    """Runs one coroutine function on the service."""

    def __init__(self, visit):
        self.visit = visit
        self.found = None

    def run(self, service):
        self.found = asyncio.run(self.visit(service))
        return ExitCode.OK


class DeafDoor(FrontEnd):
    """Listens to no signal."""

    def run(self, service):
        print("running", flush=True)
        signal.pause()
        return ExitCode.FAILED


async def one_text(service):
    deltas = service.generate([65], SamplingParams(max_tokens=3), request_id="r")
    return "".join([delta.text async for delta in deltas])


def main(how):
    install(pytest.MonkeyPatch(), DeafDoor())
    code = launch.serve(plan(setup=fake_engine.Setup(build=how)))
    print(f"code {int(code)}", flush=True)
    sys.exit(code)
