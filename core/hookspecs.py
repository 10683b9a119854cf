"""Every hook of Dovetail, in the order in which the core calls them. This file is the reference manual of plugin authors.

A plugin is a module named by an entry point of the group ``dovetail``; the entry point's name is the plugin's name::

    [project.entry-points.dovetail]
    sampler_typical = "sampler_typical.plugin"

The module defines any of the functions below, each marked with ``@hookimpl``. All of them take no arguments and return an
iterable of offers. They are called once, while the configuration is composed, and never again: no hook runs while tokens
are generated. The module must import nothing heavy (no torch, no numpy kernels): ``--help`` loads it. Heavy imports belong
inside ``create``.

A function marked ``@hookimpl`` whose name is none of these is an error, not a silent nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from core.offers import (
    BlockPolicyOffer,
    CachePolicyOffer,
    CheckpointFormatOffer,
    ComputeBackendOffer,
    DraftProposerOffer,
    FrontEndOffer,
    GrammarBackendOffer,
    GraphBackendOffer,
    ModelOffer,
    PageOffer,
    ParallelismOffer,
    QuantizerOffer,
    ReasoningParserOffer,
    RulesOffer,
    SamplerOffer,
    SchedulerOffer,
    ToolParserOffer,
)

PROJECT = "dovetail"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_compute_backends() -> Iterable[ComputeBackendOffer]:
    """Offer array frameworks that can run the decoder. Exactly one is chosen: ``--backend NAME``.

    ::

        @hookimpl
        def register_compute_backends():
            def create(context):
                from my_backend.compute import MyBackend
                return MyBackend(device=context.settings["device"], dtype=context.facts["compute.dtype"])

            yield ComputeBackendOffer(
                name="mine", summary="my own kernels", framework="mine", requires=("my_kernels",), create=create
            )

    ``create`` returns a ``core.interfaces.compute.ComputeBackend``; ``core.testing.ComputeBackendContract`` tests it.
    """
    raise NotImplementedError


@hookspec
def register_parallelisms() -> Iterable[ParallelismOffer]:
    """Offer ways for several processes to share a model. At most one is chosen: ``--parallelism NAME``, or its plugin.

    The core cuts the weights (``core.models.shard``), starts a process for each rank beside the engine's, which is rank 0, and
    sends every step to all of them; a parallelism says how many there are and puts their results together.

    ::

        class MineSettings(Section):
            size: int = Field(1, ge=1, description="processes that share the model")

        @hookimpl
        def register_parallelisms():
            def create(context):
                from my_parallelism.group import MyCollective
                return MyCollective(context.facts["parallel.rank"], context.section.size)

            yield ParallelismOffer(
                name="mine", summary="ranks that share memory", settings=MineSettings, frameworks=frozenset({"torch"}),
                ranks=lambda section: section.size, create=create,
            )

    ``create`` returns a ``core.interfaces.parallel.Collective``; ``core.testing.ParallelismContract`` tests it.
    """
    raise NotImplementedError


@hookspec
def register_models() -> Iterable[ModelOffer]:
    """Offer decoder families: which ``config.json`` they answer to and where their weights lie. Any number may be chosen.

    ::

        @hookimpl
        def register_models():
            def family():
                from my_model.family import MyFamily
                return MyFamily()

            yield ModelOffer(
                name="my_model", summary="a Llama with another name", architectures=("MyForCausalLM",), family=family
            )

    ``family`` returns a ``core.interfaces.model.ModelFamily``; ``core.testing.ModelContract`` tests it. Its ``text`` may lend a
    chat template and sampling defaults to checkpoints whose own files have none.
    """
    raise NotImplementedError


@hookspec
def register_checkpoint_formats() -> Iterable[CheckpointFormatOffer]:
    """Offer readers of checkpoints on disk. Any number may be chosen; exactly one must recognize the model's folder.

    ::

        @hookimpl
        def register_checkpoint_formats():
            def create():
                from my_format.reader import MyFormat
                return MyFormat()

            yield CheckpointFormatOffer(name="my_format", summary="*.mine files", create=create)

    ``create`` returns a ``core.interfaces.model.CheckpointFormat``; ``core.testing.CheckpointFormatContract`` tests it. Its
    ``hub_files`` says which files of a model hub's repository are fetched for it. A format never unpickles anything.
    """
    raise NotImplementedError


@hookspec
def register_quantizers() -> Iterable[QuantizerOffer]:
    """Offer packed weight formats. At most one is chosen: ``--quantization NAME``, or by naming the plugin.

    ::

        class TernarySettings(Section):
            group_size: int = Field(128, ge=32, description="weights that share one scale")

        @hookimpl
        def register_quantizers():
            def create(context):
                from quant_ternary.pack import Ternary
                return Ternary(group_size=context.section.group_size)

            yield QuantizerOffer(
                name="ternary", summary="1.6 bits a weight", bits=1.6, settings=TernarySettings, create=create
            )

    ``create`` returns a ``core.interfaces.quantizer.Quantizer``; ``core.testing.QuantizerContract`` tests it.

    ``dovetail quantize`` saves what the quantizer packs, with the plugin's settings in config.json, and whoever loads that gets
    this offer with these settings: nothing has to be written for it. ``at_load`` names the settings that are free then;
    ``reads``, with ``Quantizer.adopt``, is for what another program packed in the same format.
    """
    raise NotImplementedError


@hookspec
def register_samplers() -> Iterable[SamplerOffer]:
    """Offer ways to draw a token from logits. Exactly one is chosen: ``--sampler NAME``, or by naming the plugin.

    ::

        class TypicalSettings(Section):
            mass: float = Field(0.9, gt=0.0, le=1.0, description="probability that the kept tokens have together")

        @hookimpl
        def register_samplers():
            def create(context):
                from sampler_typical.sample import Typical
                return Typical(mass=context.section.mass)

            yield SamplerOffer(
                name="typical", summary="locally typical sampling", frameworks=frozenset({"torch"}),
                settings=TypicalSettings, create=create,
            )

    ``create`` returns a ``core.interfaces.sampler.Sampler``; ``core.testing.SamplerContract`` tests it,
    its distribution included.
    """
    raise NotImplementedError


@hookspec
def register_schedulers() -> Iterable[SchedulerOffer]:
    """Offer scheduling policies: who is admitted first, how much of a prompt one step computes. Exactly one is chosen.

    ::

        @hookimpl
        def register_schedulers():
            def create(context):
                from shortest_first.policy import ShortestFirst
                return ShortestFirst()

            yield SchedulerOffer(
                name="shortest_first", summary="short prompts first", splits_prompts=False, create=create
            )

    ``create`` returns a ``core.interfaces.scheduler.SchedulingPolicy``; ``core.testing.SchedulerContract`` tests it.
    """
    raise NotImplementedError


@hookspec
def register_cache_policies() -> Iterable[CachePolicyOffer]:
    """Offer policies for KV pages: what is shared, kept, evicted. Exactly one is chosen: ``--cache-policy NAME``.

    ::

        @hookimpl
        def register_cache_policies():
            def create(context):
                from cache_mine.policy import MyPolicy
                return MyPolicy()

            yield CachePolicyOffer(name="mine", summary="keeps system prompts for ever", create=create)

    ``create`` returns a ``core.interfaces.cache.CachePolicy``; ``core.testing.CachePolicyContract`` tests it:
    no page is ever lost, and whoever only waits changes nothing. ``docs/plugins/cache-policy.md`` has a whole one.
    """
    raise NotImplementedError


@hookspec
def register_block_policies() -> Iterable[BlockPolicyOffer]:
    """Offer ways to divide the KV pages between newcomers and growth. Exactly one is chosen: ``--block-policy NAME``.

    ::

        @hookimpl
        def register_block_policies():
            def create(context):
                from blocks_mine.policy import MyBlocks
                return MyBlocks()

            yield BlockPolicyOffer(name="mine", summary="keeps a tenth of the pages for growth", create=create)

    ``create`` returns a ``core.interfaces.blocks.BlockPolicy``; ``core.testing.BlockPolicyContract`` tests it.
    """
    raise NotImplementedError


@hookspec
def register_graph_backends() -> Iterable[GraphBackendOffer]:
    """Offer ways to launch a step (eager, captured and replayed). Exactly one is chosen: ``--graph NAME``, or its plugin.

    ::

        @hookimpl
        def register_graph_backends():
            def create(context):
                from graph_mine.capture import MyGraphs
                return MyGraphs(sizes=context.section.sizes)

            yield GraphBackendOffer(
                name="mine", summary="replays recorded steps", frameworks=frozenset({"torch"}), create=create,
                rules=(Rule(id="graph-mine-needs-cuda", when=(Condition("device.kind", "!=", "cuda"),),
                            reason="recorded steps need a CUDA device, this one is {device.kind}",
                            remedies=(Remedy("drop --plugins graph_mine", {"plugins-": ["graph_mine"]}),)),),
            )

    ``create`` returns a ``core.interfaces.graph.GraphBackend``; ``core.testing.GraphBackendContract`` tests it.
    """
    raise NotImplementedError


@hookspec
def register_draft_proposers() -> Iterable[DraftProposerOffer]:
    """Offer ways to guess what comes next, checked several tokens a step. At most one is chosen: ``--speculation NAME``.

    ::

        class EchoSettings(Section):
            tokens: int = Field(4, ge=1, description="guesses at a time")

        @hookimpl
        def register_draft_proposers():
            def create(context):
                from spec_echo.echo import Echo
                return Echo(context.section.tokens)

            yield DraftProposerOffer(name="echo", summary="guesses the prompt again", settings=EchoSettings, create=create)

    ``create`` returns a ``core.interfaces.drafts.DraftProposer``; ``core.testing.DraftProposerContract`` tests it. Guesses
    never change which tokens are generated, only how soon.
    """
    raise NotImplementedError


@hookspec
def register_grammar_backends() -> Iterable[GrammarBackendOffer]:
    """Offer ways to keep an output to a form: a JSON schema, a grammar. At most one is chosen: ``--grammar NAME``.

    ::

        @hookimpl
        def register_grammar_backends():
            def create(context):
                from grammar_mine.matching import MyGrammars
                return MyGrammars()

            yield GrammarBackendOffer(name="mine", summary="regular expressions only", create=create)

    ``create`` returns a ``core.interfaces.grammar.GrammarBackend``; ``core.testing.GrammarBackendContract`` tests it.
    """
    raise NotImplementedError


@hookspec
def register_tool_parsers() -> Iterable[ToolParserOffer]:
    """Offer ways to read calls of tools in what a model writes. At most one is chosen: ``--tool-call-parser NAME``.

    ::

        @hookimpl
        def register_tool_parsers():
            def create(context):
                from tools_mine.calls import MyCalls
                return MyCalls()

            yield ToolParserOffer(
                name="mine", summary="a call a line: CALL name {arguments}", create=create,
                recognizes=lambda config, chat_template: "CALL " in chat_template,
            )

    ``create`` returns a ``core.interfaces.parsers.ToolParser``; ``core.testing.ToolParserContract`` tests it. It is made in
    the front end's process.
    """
    raise NotImplementedError


@hookspec
def register_reasoning_parsers() -> Iterable[ReasoningParserOffer]:
    """Offer ways to tell a model's reasoning from its answer. At most one is chosen: ``--reasoning-parser NAME``.

    ::

        @hookimpl
        def register_reasoning_parsers():
            def create(context):
                from reasoning_mine.marks import MyMarks
                return MyMarks()

            yield ReasoningParserOffer(
                name="mine", summary="reasoning between REASON and ANSWER", create=create,
                recognizes=lambda config, chat_template: "REASON" in chat_template,
            )

    ``create`` returns a ``core.interfaces.parsers.ReasoningParser``; ``core.testing.ReasoningParserContract`` tests it. It is
    made in the front end's process.
    """
    raise NotImplementedError


@hookspec
def register_front_ends() -> Iterable[FrontEndOffer]:
    """Offer doors: servers or loops that take requests. Exactly one is chosen: ``--front-end NAME``, or its plugin.

    ::

        class StdinSettings(Section):
            prompt: str = Field("> ", description="what is written before each line is read")

        @hookimpl
        def register_front_ends():
            def create(context):
                from door_stdin.loop import StdinDoor
                return StdinDoor(prompt=context.section.prompt)

            yield FrontEndOffer(name="stdin", summary="one prompt a line", settings=StdinSettings, create=create)

    ``create`` returns a ``core.interfaces.frontend.FrontEnd``; ``core.testing.FrontEndContract`` tests it.
    """
    raise NotImplementedError


@hookspec
def register_pages() -> Iterable[PageOffer]:
    """Offer what browsers are shown at ``/``. At most one is chosen: ``--page NAME``, or its plugin; ``none`` for nothing.

    ::

        @hookimpl
        def register_pages():
            yield PageOffer(name="mine", summary="our own chat", folder=lambda: Path(__file__).parent / "files")

    ``folder`` returns where its files lie; ``core.testing.PageContract`` tests them. A page is files: what it shows it asks of
    the server's routes, as any other client does, with a key where the server wants one.
    """
    raise NotImplementedError


@hookspec
def register_rules() -> Iterable[RulesOffer]:
    """Offer rules and facts without a feature: a house's own policy, a known-bad driver. All of a chosen plugin's apply.

    ::

        @hookimpl
        def register_rules():
            yield RulesOffer(
                name="house_rules", summary="what our cluster allows",
                rules=(Rule(id="house-max-seqs", when=(Condition("settings.max_num_seqs", ">", 64),),
                            reason="this cluster allows 64 sequences, not {settings.max_num_seqs}",
                            remedies=(Remedy("--max-num-seqs 64", {"max_num_seqs": 64}),)),),
            )

    ``core.testing.RulesContract`` tests them: every fact exists, every remedy cures.
    """
    raise NotImplementedError
