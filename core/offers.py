"""What a plugin hands over: one frozen record per hook. An offer is light; ``create`` imports the heavy implementation.

An offer is chosen by its *name in the configuration* or by naming its plugin (``--plugins``), never by the order of
installation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel

from core.interfaces.rules import Fact, Rule

if TYPE_CHECKING:
    from core.interfaces.blocks import BlockPolicy
    from core.interfaces.cache import CachePolicy
    from core.interfaces.compute import ComputeBackend
    from core.interfaces.drafts import DraftProposer
    from core.interfaces.frontend import FrontEnd
    from core.interfaces.grammar import GrammarBackend
    from core.interfaces.graph import GraphBackend
    from core.interfaces.model import CheckpointFormat, ModelFamily
    from core.interfaces.parallel import Collective
    from core.interfaces.parsers import ReasoningParser, ToolParser
    from core.interfaces.quantizer import Quantizer
    from core.interfaces.sampler import Sampler
    from core.interfaces.scheduler import SchedulingPolicy


class Section(BaseModel, extra="forbid", frozen=True, validate_default=True):
    """Base of a plugin's settings: one TOML table ``[plugin_name]``, ``DOVETAIL_PLUGIN_NAME__FIELD``, ``--plugin-name-field``.

    Give every field a type, a default and ``Field(description=...)``: they become the flag's help.
    """


@dataclass(frozen=True)
class Context:
    """What ``create`` receives. Everything in it is plain data and picklable."""

    section: Any  # the plugin's own settings: an instance of the offer's ``settings``, or None
    settings: Mapping[str, Any]  # the core's settings by name: settings["max_model_len"]
    facts: Mapping[str, Any]  # every fact the plan was judged by


@dataclass(frozen=True)
class Alias:
    """A flag or variable under which users of other servers already know a feature or a setting of this plugin.

    ``flag`` as typed ("--use-cudagraph") or ``env`` ("FD_SAMPLING_CLASS"). Either it names a feature, or it names a setting:

    * ``chooses`` is an offer of this plugin: giving the flag (for ``value`` None), or giving it this ``value``
      ("--quantization wint4"), chooses that offer, and so loads the plugin.
    * ``sets`` is a setting ("port" of this plugin's section, or a core setting): the flag's value becomes its value.
      ``translates`` are values that are spelled otherwise there, with ours: ("0", "inf"); with None they say nothing.

    A table may itself say whether the feature is wanted. Its alias has both, ``sets`` the table and ``chooses`` the offer, and
    ``asks``, the key that says so. The table then chooses the offer, from whichever place it is set; if the key is false, it
    refuses the offer, and that nobody uses its other keys is no mistake.
    """

    summary: str
    flag: str | None = None
    env: str | None = None
    value: str | None = None
    chooses: str | None = None
    sets: str | None = None
    asks: str | None = None
    translates: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class ForeignWord:
    """A flag or variable of another server that no setting answers to, and what is told to those who give it.

    ``flag`` as typed ("--router") or ``env`` ("FD_TRACE"; "FD_XPU_*" for all that begin so). ``effect``:

    * "none": what it asks for is so anyway, and nothing is told.
    * "warns": it has no effect here, and what is served does not depend on it; ``reason`` says why.
    * "refuses": without it something else would be served; ``reason`` says why it cannot be had.
    * "later": refuses too; ``reason`` is what has not been built yet.
    * "unknown": a variable that begins like those of that server, and is none of them.

    It is about any value, or only about ``values`` ("{*" is any text that begins so); ``fine`` are values that ask for what is
    so anyway. A ``switch`` takes no value. Where a plugin gives the word a meaning, that goes before.
    """

    reason: str
    effect: Literal["none", "warns", "refuses", "later", "unknown"]
    flag: str | None = None
    env: str | None = None
    values: tuple[str, ...] = ()
    fine: tuple[str, ...] = ()
    switch: bool = False
    remedy: str = ""

    @property
    def name(self) -> str:
        return self.flag.replace("_", "-") if self.flag else str(self.env)


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What all offers have. ``name`` is unique within its kind and is what configurations say.

    ``rules`` hold where the offer is used; ``idle_rules`` where its plugin is not, though settings of it are given.
    """

    kind: ClassVar[str]
    name: str
    summary: str
    settings: type[Section] | None = None
    rules: tuple[Rule, ...] = ()
    idle_rules: tuple[Rule, ...] = ()
    aliases: tuple[Alias, ...] = ()
    foreign_words: tuple[ForeignWord, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """What it can be chosen as: its kind, and for some another part that they can play."""
        return (self.kind,)


@dataclass(frozen=True, kw_only=True)
class QuantizerOffer(Offer):
    """``create(context)`` gives the quantizer. ``bits`` is the nominal width, for memory estimates and the hardware table.
    ``rounds_activations``: the format itself rounds them, so that a product by unpacked weights would give other numbers.

    ``stored_bits(section, role, in_features)``: the bits that a weight of this role takes, scales included, or None when the
    role is not packed. Left out, the layers' linears take ``bits`` and the head is not packed.

    ``at_load``: the settings that have no part in what is stored, only in how it is multiplied. A checkpoint that is saved
    packed keeps all the others, and who loads it may not change those.

    ``reads(quantization_config)``: the settings with which this quantizer takes the tensors of another program's checkpoint as
    they are (``Quantizer.adopt``), or None when that is not in its format. It looks at the table of config.json alone.

    ``head``: the setting, true or false, that says whether the head is packed with the layers. It follows
    ``--head-quantization``, which may name this quantizer also where another packs the layers, or none does: then
    ``of_role("head")`` of what is made with that setting true packs the head alone.
    """

    kind: ClassVar[str] = "quantizer"
    create: Callable[[Context], Quantizer]
    bits: float
    rounds_activations: bool = False
    stored_bits: Callable[[Any, str, int], float | None] | None = None
    at_load: frozenset[str] = frozenset()
    reads: Callable[[Mapping[str, Any]], Mapping[str, Any] | None] | None = None
    head: str | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        return (self.kind,) if self.head is None else (self.kind, HEAD_QUANTIZER)


@dataclass(frozen=True, kw_only=True)
class SamplerOffer(Offer):
    """``frameworks``: the array frameworks whose logits it takes ("torch", "paddle")."""

    kind: ClassVar[str] = "sampler"
    create: Callable[[Context], Sampler]
    frameworks: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class CachePolicyOffer(Offer):
    kind: ClassVar[str] = "cache_policy"
    create: Callable[[Context], CachePolicy]


@dataclass(frozen=True, kw_only=True)
class BlockPolicyOffer(Offer):
    kind: ClassVar[str] = "block_policy"
    create: Callable[[Context], BlockPolicy]


@dataclass(frozen=True, kw_only=True)
class GraphBackendOffer(Offer):
    """``frameworks``: the compute frameworks it can capture; empty for one that works with any."""

    kind: ClassVar[str] = "graph_backend"
    create: Callable[[Context], GraphBackend]
    frameworks: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class GrammarBackendOffer(Offer):
    kind: ClassVar[str] = "grammar_backend"
    create: Callable[[Context], GrammarBackend]


@dataclass(frozen=True, kw_only=True)
class ToolParserOffer(Offer):
    """``recognizes(config, chat_template)``: whether a model's calls are to be read so, by its config.json and the source of
    its chat template ("" where it has none). Where nobody says which parser to use, it is the one that recognizes the model, if
    it is the only one.
    """

    kind: ClassVar[str] = "tool_parser"
    create: Callable[[Context], ToolParser]
    recognizes: Callable[[Mapping[str, Any], str], bool] = field(default=lambda config, chat_template: False)


@dataclass(frozen=True, kw_only=True)
class ReasoningParserOffer(Offer):
    """``recognizes``: as of a tool parser's offer, for how the model marks its reasoning."""

    kind: ClassVar[str] = "reasoning_parser"
    create: Callable[[Context], ReasoningParser]
    recognizes: Callable[[Mapping[str, Any], str], bool] = field(default=lambda config, chat_template: False)


@dataclass(frozen=True, kw_only=True)
class DraftProposerOffer(Offer):
    kind: ClassVar[str] = "draft_proposer"
    create: Callable[[Context], DraftProposer]


@dataclass(frozen=True, kw_only=True)
class FrontEndOffer(Offer):
    kind: ClassVar[str] = "front_end"
    create: Callable[[Context], FrontEnd]


@dataclass(frozen=True, kw_only=True)
class PageOffer(Offer):
    """``folder()``: files that a browser is shown as they are, index.html first; it exists wherever the plugin is installed.

    The server lets it load nothing but these files and ask nobody but itself: no script or style inside index.html, no other
    host. ``core.interfaces.frontend.Composer`` and the routes of the front end are what it can ask.
    """

    kind: ClassVar[str] = "page"
    folder: Callable[[], Path]


@dataclass(frozen=True, kw_only=True)
class ComputeBackendOffer(Offer):
    """``framework``: "torch", "paddle". ``requires``: modules it imports; a missing one is told before anything is launched.
    ``ahead``: those of its own modules that ``create`` imports and that take long, since they import the framework: the
    engine's process does so while the front end's still gets ready.

    ``splits``: whether its backends can ``join`` others, each with a part of the model's weights.
    ``devices``: the kinds of device it runs on, of "cpu" and "cuda": ``--device auto`` takes one of them, others are refused.
    ``dtypes``: the number formats it computes in, the best first, by kind of device; all of them where it has nothing to say.
    ``exchanges``: whether its framework lends and takes arrays through DLPack, as ``from_dlpack`` of its top module does: then
    a sampler of another framework gets its logits so, without a copy.

    ``cores(section)``: how many physical cores its settings leave to its threads, or None where they say nothing of it. Threads
    that nobody counted are then no more than these.

    ``kv_head_bytes(section, head_dim, element_bytes)``: what its KV cache takes for a head of a key or of a value, whose
    numbers have ``element_bytes`` in the model's number format.
    """

    kind: ClassVar[str] = "compute_backend"
    create: Callable[[Context], ComputeBackend]
    framework: str
    requires: tuple[str, ...] = ()
    ahead: tuple[str, ...] = ()
    splits: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    exchanges: bool = False
    cores: Callable[[Any], int | None] = field(default=lambda section: None)
    kv_head_bytes: Callable[[Any, int, int], int] = field(default=lambda section, head_dim, element: head_dim * element)


@dataclass(frozen=True, kw_only=True)
class ParallelismOffer(Offer):
    """``ranks(section)``: how many processes share a model; with 1, ``create`` is not called. ``size``: the setting for it.

    ``create(context)`` is called in each of them, where ``context.facts["parallel.rank"]`` says which it is. ``frameworks``:
    the compute frameworks whose arrays it takes.
    """

    kind: ClassVar[str] = "parallelism"
    create: Callable[[Context], Collective]
    ranks: Callable[[Any], int]
    frameworks: frozenset[str]
    size: str = "size"


@dataclass(frozen=True, kw_only=True)
class SchedulerOffer(Offer):
    """``splits_prompts``: whether a prompt longer than a step's budget is computed over several steps."""

    kind: ClassVar[str] = "scheduler"
    create: Callable[[Context], SchedulingPolicy]
    splits_prompts: bool


@dataclass(frozen=True, kw_only=True)
class ModelOffer(Offer):
    """``family`` is light: it reads configs and names, never weights. Of many chosen, the architecture decides."""

    kind: ClassVar[str] = "model"
    architectures: tuple[str, ...]
    family: Callable[[], ModelFamily]


@dataclass(frozen=True, kw_only=True)
class CheckpointFormatOffer(Offer):
    """Many may be chosen; the one that recognizes the model's folder reads it. None that does, or two, is an error."""

    kind: ClassVar[str] = "checkpoint_format"
    create: Callable[[], CheckpointFormat]


@dataclass(frozen=True, kw_only=True)
class RulesOffer(Offer):
    """Rules without a feature, and facts of one's own. ``derive`` computes the declared facts from those already known."""

    kind: ClassVar[str] = "rules"
    facts: tuple[Fact, ...] = ()
    derive: Callable[[Mapping[str, Any]], Mapping[str, Any]] = field(default=lambda facts: {})


HEAD_QUANTIZER = "head_quantizer"
"""The part of the quantizer that packs the head. It is chosen by its name alone, never by naming its plugin."""
SINGLE_KINDS: tuple[str, ...] = (
    "compute_backend",
    "front_end",
    "scheduler",
    "sampler",
    "cache_policy",
    "block_policy",
    "graph_backend",
)
"""Kinds of which exactly one offer is chosen. Of ``OPTIONAL_KINDS`` at most one is, of ``MANY_KINDS`` any number."""
OPTIONAL_KINDS: tuple[str, ...] = (
    "quantizer",
    HEAD_QUANTIZER,
    "parallelism",
    "draft_proposer",
    "grammar_backend",
    "tool_parser",
    "reasoning_parser",
    "page",
)
MANY_KINDS: tuple[str, ...] = ("model", "checkpoint_format", "rules")
