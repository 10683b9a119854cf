"""Which compute backends the tests run on that are no backend's own: ``pytest --backend torch --backend paddle``."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from core.interfaces.compute import ComputeBackend, DType
from core.offers import ComputeBackendOffer, Context
from core.plugin_manager import PluginManager


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        action="append",
        metavar="NAME",
        help="an installed compute backend for the tests that run on any; may be given several times; torch when none is given",
    )


def pytest_configure() -> None:
    """A job in a shell's background ignores Ctrl-C, and so would the processes that tests start and end by it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def backends(config: pytest.Config) -> list[str]:
    return list(dict.fromkeys(config.getoption("--backend") or ["torch"]))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "compute_backend" in metafunc.fixturenames:
        metafunc.parametrize("compute_backend", backends(metafunc.config), indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of a backend that was not asked for are left out, and counted as deselected."""
    if "paddle" in backends(config):
        return
    left_out = [item for item in items if item.get_closest_marker("paddle")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("paddle")]


@pytest.fixture(scope="session")
def compute_backend(request: pytest.FixtureRequest) -> str:
    """The name of the backend a test runs on, as --backend of the server has it."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def make_backend(compute_backend: str) -> Callable[[DType], ComputeBackend]:
    """A new backend in a number format: plain operations on one thread of the CPU."""

    def make(dtype: DType) -> ComputeBackend:
        if compute_backend == "torch":  # whose offer would choose native kernels
            from core.compute.torch_backend.backend import TorchBackend

            return TorchBackend("cpu", dtype, threads=1)
        installed = {each.name: each.offer for each in PluginManager.discover().offers("compute_backend")}
        offer = installed.get(compute_backend)
        assert isinstance(offer, ComputeBackendOffer), f"--backend {compute_backend}: installed are {', '.join(installed)}"
        section = offer.settings() if offer.settings else None
        return offer.create(Context(section, {"threads": 1}, {"device.kind": "cpu", "compute.dtype": dtype}))

    return make
