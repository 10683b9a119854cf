"""From a plan to live objects: each offer's ``create`` is called once, and constructors get plain objects.

Heavy on purpose: this is what a worker process does with the plan it was sent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.compose.calling import call
from core.compose.facts import show
from core.compose.plan import Plan
from core.errors import UserError
from core.offers import HEAD_QUANTIZER, Context
from core.plugin_manager import Offered, PluginManager, remedies

if TYPE_CHECKING:
    from core.engine.engine import Engine
    from core.engine.rank import Part, Rank
    from core.interfaces.compute import ComputeBackend
    from core.interfaces.frontend import FrontEnd
    from core.interfaces.grammar import GrammarBackend
    from core.interfaces.model import CheckpointFormat, Weight
    from core.interfaces.parsers import ReasoningParser, ToolParser
    from core.interfaces.quantizer import Quantizer
    from core.models.decoder import Decoder
    from core.models.shard import Shard


def fetched(plan: Plan) -> Plan:
    """The same plan with every file of its model on disk; composing fetched only what it had to read.

    :raises UserError: when something cannot be fetched.
    """
    from core.models.sources import fetch

    return dataclasses.replace(plan, model=fetch(plan.model, plan.settings))


def build_engine(plan: Plan, manager: PluginManager | None = None) -> Engine:
    """The engine of a ``fetched`` plan in this process, with its weights loaded.

    :raises UserError: when the model cannot be read or does not fit after all.
    """
    from core.engine.engine import Engine, EngineConfig
    from core.engine.lending import LentLogits
    from core.engine.ranks import OtherRanks, PagesOfAllRanks, SplitRunner
    from core.engine.runner import Runner

    manager = manager or PluginManager.load_only(plan.plugins)
    settings, spec = plan.settings, plan.spec
    ending = ExitStack()
    with ending:
        ranks = plan.facts["parallel.ranks"]
        others = None
        if ranks > 1:  # first of all: they load at the same time
            others = OtherRanks(build_rank, plan, ranks)
            ending.callback(others.close)
        part = load_part(plan, manager, 0)
        decoder, backend, num_pages = part.decoder, part.decoder.backend, part.pages
        ending.callback(backend.close)
        if others is not None and part.collective is not None:
            others.collective = part.collective
            num_pages = others.agree(num_pages)
            part.collective.meet(Path(others.folder))
        kv = backend.kv_cache(decoder.spec, num_pages, settings["block_size"])
        sampler = _create(plan, manager, "sampler")
        if plan.facts["sampler.between"] is not None:
            sampler = LentLogits(sampler, backend.framework, plan.facts["sampler.between"])
        sampler.warm(spec.vocab, backend.device)
        graph = _create(plan, manager, "graph_backend")
        if others is None:
            runner = Runner(decoder, kv, sampler, graph)
        else:
            others.wait_begun()
            runner = SplitRunner(decoder, kv, sampler, graph, others)
        config = EngineConfig(
            max_num_seqs=settings["max_num_seqs"],
            max_model_len=settings["max_model_len"],
            max_num_batched_tokens=settings["max_num_batched_tokens"],
            max_waiting=settings["max_waiting"],
            page_size=settings["block_size"],
            num_pages=num_pages,
            eos_token_ids=spec.eos_token_ids,
            vocab=spec.vocab,
            seed=settings["seed"],
        )
        cache = _create(plan, manager, "cache_policy")
        cache.attach_memory(kv if others is None else PagesOfAllRanks(kv, others))
        policies = _create(plan, manager, "scheduler"), cache, _create(plan, manager, "block_policy")
        drafts = _create(plan, manager, "draft_proposer") if plan.chosen("draft_proposer") else None
        engine = Engine(config, runner, *policies, drafts, grammars(plan, manager))
        ending.pop_all()  # the engine ends them now
        return engine


def grammars(plan: Plan, manager: PluginManager) -> GrammarBackend | None:
    """What keeps outputs to a form. It reads the vocabulary on its own, while weights are loaded or later."""
    if plan.chosen("grammar_backend") is None:
        return None
    from core.interfaces.grammar import Vocabulary

    def vocabulary() -> Vocabulary:
        from core.text.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(plan.model, plan.config)
        tokens = [tokenizer.token_bytes(token) for token in range(plan.spec.vocab)]
        return Vocabulary(tokens, tokenizer.special_ids, plan.spec.eos_token_ids)

    backend: GrammarBackend = _create(plan, manager, "grammar_backend")
    backend.attach(vocabulary)
    return backend


def build_rank(plan: Plan, rank: int) -> Rank:
    """What the process of a rank but 0 does first."""
    from core.engine.rank import Rank

    manager = PluginManager.load_only(plan.plugins)
    return Rank(load_part(plan, manager, rank), plan.settings["block_size"], _create(plan, manager, "graph_backend"))


def load_part(plan: Plan, manager: PluginManager, rank: int) -> Part:
    """One rank's part of the model, which is all of it where there is one rank."""
    from core.engine.rank import Part
    from core.models.shard import Shard

    ranks = plan.facts["parallel.ranks"]
    backend = _create(plan, manager, "compute_backend", rank)
    try:
        collective = None
        if ranks > 1:
            collective = _create(plan, manager, "parallelism", rank)
            backend.join(collective, plan.spec.vocab)
        decoder = load_decoder(plan, backend, manager, Shard(plan.spec, rank, ranks))
        return Part(decoder, collective, count_pages(plan, backend))
    except BaseException:
        backend.close()
        raise


def create_front_end(plan: Plan, manager: PluginManager | None = None) -> FrontEnd:
    front_end: FrontEnd = _create(plan, manager or PluginManager.load_only(plan.plugins), "front_end")
    return front_end


def parsers(plan: Plan, manager: PluginManager | None = None) -> tuple[ToolParser | None, ReasoningParser | None]:
    """What reads calls and reasoning in the model's text, in the front end's process."""
    kinds = [kind for kind in ("tool_parser", "reasoning_parser") if plan.chosen(kind) is not None]
    manager = manager or (PluginManager.load_only(plan.plugins) if kinds else None)
    made = {kind: _create(plan, manager, kind) for kind in kinds if manager is not None}
    return made.get("tool_parser"), made.get("reasoning_parser")


def page_folder(plan: Plan, manager: PluginManager | None = None) -> Path | None:
    """Where the files lie that browsers are shown; None when the plan shows them nothing."""
    if plan.chosen("page") is None:
        return None
    offered = _offered(plan, manager or PluginManager.load_only(plan.plugins), "page")
    folder: Path = call(offered, "folder")
    if not folder.is_dir():
        raise UserError.of(
            f"folder of the page {offered.name!r} of plugin {offered.plugin} of {offered.provenance} returned {folder}, "
            "where no folder is",
            "",
            *remedies(offered.plugin, offered.provenance),
        )
    return folder


def load_decoder(plan: Plan, backend: ComputeBackend, manager: PluginManager, shard: Shard | None = None) -> Decoder:
    """Place weights one at a time as they stream in: all of the model, or a rank's part."""
    from core.models.decoder import Decoder
    from core.models.shard import Shard

    shard = shard or Shard(plan.spec, 0, 1)
    quantizer = create_quantizer(plan, manager)
    with stored_weights(plan, manager) as weights:
        return Decoder.load(shard.spec, shard.weights(weights, quantizer), backend, quantizer)


def create_quantizer(plan: Plan, manager: PluginManager) -> Quantizer | None:
    """What packs the layers, the head or both; None where nothing is packed."""
    from core.interfaces.quantizer import ByRole

    chosen, of_head = plan.chosen("quantizer"), plan.chosen(HEAD_QUANTIZER)
    layers: Quantizer | None = _create(plan, manager, "quantizer") if chosen is not None else None
    packs_head = layers is not None and "head" in layers.roles
    if of_head is None:
        return ByRole(layers, None) if packs_head else layers
    if packs_head and chosen is not None and (chosen.name, chosen.plugin) == (of_head.name, of_head.plugin):
        return layers
    return ByRole(layers, _create(plan, manager, HEAD_QUANTIZER).of_role("head"))


def load_model(plan: Plan) -> Decoder:
    """The decoder of a ``fetched`` plan alone, in this process: to look at what it computes, without an engine around it."""
    manager = PluginManager.load_only(plan.plugins)
    return load_decoder(plan, _create(plan, manager, "compute_backend"), manager)


@contextmanager
def stored_weights(plan: Plan, manager: PluginManager) -> Iterator[Iterator[Weight]]:
    """The weights of a ``fetched`` plan's checkpoint, in canonical form, while it is open."""
    from core.models.adopted import adopted_weights
    from core.models.loading import open_checkpoint, weights
    from core.models.packed import packed_weights

    family = call(_offered(plan, manager, "model"), "family")
    checkpoint = open_checkpoint(plan.model, checkpoint_formats(plan, manager), plan.settings["seed"])
    try:
        if plan.packing is None:
            yield weights(checkpoint, family, plan.spec)
        elif plan.packing.adopted:
            yield adopted_weights(checkpoint, family, plan.spec, _create(plan, manager, "quantizer"))
        else:
            quantizer = create_quantizer(plan, manager)
            assert quantizer is not None
            yield packed_weights(checkpoint, plan.spec, plan.packing, quantizer)
    finally:
        checkpoint.close()


def checkpoint_formats(plan: Plan, manager: PluginManager | None = None) -> Mapping[str, CheckpointFormat]:
    """The format that reads the plan's model, by name."""
    offered = _offered(plan, manager or PluginManager.load_only(plan.plugins), "checkpoint_format")
    return {offered.name: call(offered, "create")}


def count_pages(plan: Plan, backend: ComputeBackend) -> int:
    """KV pages: as planned; on CUDA, where nobody gave a number, what the loaded weights leave of the allowed memory.

    :raises UserError: when that is less than one request of max_model_len tokens.
    """
    facts, settings = plan.facts, plan.settings
    if facts["device.kind"] != "cuda" or settings["num_gpu_blocks_override"] is not None:
        return int(facts["kv.num_pages"])
    free, total = backend.memory()
    allowed = int(total * settings["gpu_memory_utilization"]) - (total - free)
    left = allowed - int(facts["memory.activation_bytes"])
    pages = left // int(facts["memory.kv_page_bytes"])
    if pages < facts["kv.pages_per_request"]:
        wanted = facts["kv.pages_per_request"] * facts["memory.kv_page_bytes"]
        raise UserError.of(
            f"after loading, {show('left_bytes', max(0, left))} are left for KV pages, and one request of max_model_len "
            f"{settings['max_model_len']} needs {show('wanted_bytes', wanted)}",
            plan.origins.get("gpu_memory_utilization", ""),
            "raise --gpu-memory-utilization",
            "lower --max-model-len, --max-num-batched-tokens or --max-num-seqs",
        )
    return pages


def _create(plan: Plan, manager: PluginManager, kind: str, rank: int = 0) -> Any:
    offered = _offered(plan, manager, kind)
    model = offered.offer.settings
    section = model.model_validate(plan.sections[offered.plugin]) if model is not None else None
    offer: Any = offered.offer
    if kind == HEAD_QUANTIZER and section is not None:
        section = section.model_copy(update={offer.head: True})
    facts = plan.facts if rank == 0 else {**plan.facts, "parallel.rank": rank}
    return call(offered, "create", Context(section=section, settings=plan.settings, facts=facts))


def _offered(plan: Plan, manager: PluginManager, kind: str) -> Offered:
    choice = plan.chosen(kind)
    if choice is None:
        raise LookupError(f"the plan has no {kind}")
    return next(each for each in manager.offers(kind) if each.name == choice.name and each.plugin == choice.plugin)
