"""Plugins that exist only in these tests, and ways to install them: as entry points in memory, or as folders on PYTHONPATH."""

import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from pydantic import Field

from core.compose.probe import DeviceProbe, Gpu
from core.hookspecs import hookimpl
from core.offers import (
    Alias,
    BlockPolicyOffer,
    CachePolicyOffer,
    ComputeBackendOffer,
    FrontEndOffer,
    GraphBackendOffer,
    QuantizerOffer,
    SamplerOffer,
    SchedulerOffer,
    Section,
)
from core.plugin_manager import PluginManager

GIB = 1 << 30
CPU = DeviceProbe("A Test CPU", 4, ("avx2",), 16 * GIB, 12 * GIB)
CUDA = DeviceProbe("A Test CPU", 4, ("avx2",), 16 * GIB, 12 * GIB, (Gpu("A Test GPU", 9.0, 80 * GIB, 78 * GIB),))


class Distribution(NamedTuple):
    name: str
    version: str


class Point:
    """An entry point that is nowhere but here."""

    group = "dovetail"

    def __init__(self, name, module, distribution="testdist", version="1.0"):
        self.name, self._module = name, module
        self.value = getattr(module, "__name__", str(module))
        self.dist = Distribution(distribution, version)

    def load(self):
        if isinstance(self._module, BaseException):
            raise self._module
        return self._module


def create(context):
    raise AssertionError("nothing is created while composing")


def plugin(module_name, **hooks):
    """A module with hooks that return lists: ``plugin("mine", register_samplers=[SamplerOffer(...)])``."""
    module = ModuleType(module_name)
    for hook, offers in hooks.items():
        namespace = {"offers": offers}
        exec(f"def {hook}():\n    return offers", namespace)
        setattr(module, hook, hookimpl(namespace[hook]))
    return module


class DoorSettings(Section, frozen=True):
    host: str = Field("127.0.0.1", description="address")
    port: int = Field(8000, ge=0, le=65535, description="port")
    tls: bool = Field(False, description="encrypt")
    allowed: tuple[str, ...] = Field((), description="who may come in")


class ChunkSettings(Section, frozen=True):
    most: int = Field(1, ge=1, description="unfinished prompts a step")


def sampler(name, frameworks=("fake",), **more):
    return SamplerOffer(name=name, summary=f"sampler {name}", frameworks=frozenset(frameworks), create=create, **more)


def quantizer(name, bits=8.0, **more):
    return QuantizerOffer(name=name, summary=f"quantizer {name}", bits=bits, create=create, **more)


def backend(name, framework="fake", requires=()):
    return ComputeBackendOffer(name=name, summary=f"backend {name}", framework=framework, requires=requires, create=create)


def standard_points():
    """Light stand-ins under the names of the core's defaults; the models are the real ones."""
    import core.models.plugin

    whole = SchedulerOffer(name="whole", summary="in one piece", splits_prompts=False, create=create)
    chunked = SchedulerOffer(
        name="chunked",
        summary="in pieces",
        splits_prompts=True,
        create=create,
        settings=ChunkSettings,
        aliases=(Alias("split prompts", flag="--enable-chunked-prefill", chooses="chunked"),),
    )
    eager = GraphBackendOffer(name="eager", summary="as it is", create=create)
    private = CachePolicyOffer(name="private", summary="no sharing", create=create)
    shared = BlockPolicyOffer(name="global", summary="one pool", create=create)
    door = FrontEndOffer(
        name="openai_http",
        summary="a door",
        create=create,
        settings=DoorSettings,
        aliases=(Alias("port", flag="--port", sets="port"), Alias("port", env="OLD_PORT", sets="port")),
    )
    return [
        Point("backend_torch", plugin("fake_torch", register_compute_backends=[backend("torch")])),
        Point("decoder_models", core.models.plugin),
        Point("openai_http", plugin("fake_http", register_front_ends=[door])),
        Point(
            "plain",
            plugin(
                "fake_plain",
                register_schedulers=[whole],
                register_graph_backends=[eager],
                register_cache_policies=[private],
            ),
        ),
        Point("kv_blocks", plugin("fake_blocks", register_block_policies=[shared])),
        Point("prefill_chunked", plugin("fake_chunked", register_schedulers=[chunked])),
        Point("sampler_standard", plugin("fake_sampler", register_samplers=[sampler("standard")])),
    ]


def manager(*more, without=(), blocked=()):
    points = [point for point in standard_points() if point.name not in without]
    return PluginManager.discover(blocked, entry_points=[*points, *more])


def install(folder: Path, distribution: str, name: str, source: str, version: str = "1.0") -> Path:
    """A distribution on disk: one module and what pip would write beside it."""
    module = f"{distribution.replace('-', '_')}_{name}"
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    with (info / "entry_points.txt").open("a") as file:
        if file.tell() == 0:
            file.write("[dovetail]\n")
        file.write(f"{name} = {module}\n")
    return folder


PYTHON = sys.executable
