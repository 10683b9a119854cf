"""What plugins hand over, checked once against the annotations of ``core.offers``: a mistake is told where it was made.

``core.plugin_manager`` asks here when it loads plugins, and ``core.compose.calling`` when a function of an offer returned.
"""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from core import offers
from core.interfaces import rules
from core.interfaces.rules import Rule
from core.offers import Alias, ForeignWord, Offer, QuantizerOffer, Section

INTERFACES: Mapping[str, str] = {
    "BlockPolicy": "core.interfaces.blocks",
    "CachePolicy": "core.interfaces.cache",
    "CheckpointFormat": "core.interfaces.model",
    "Collective": "core.interfaces.parallel",
    "ComputeBackend": "core.interfaces.compute",
    "DraftProposer": "core.interfaces.drafts",
    "FrontEnd": "core.interfaces.frontend",
    "GrammarBackend": "core.interfaces.grammar",
    "GraphBackend": "core.interfaces.graph",
    "ModelFamily": "core.interfaces.model",
    "Quantizer": "core.interfaces.quantizer",
    "ReasoningParser": "core.interfaces.parsers",
    "Sampler": "core.interfaces.sampler",
    "SchedulingPolicy": "core.interfaces.scheduler",
    "ToolParser": "core.interfaces.parsers",
}
"""Where the classes are that offers make. They are imported when one was made, and not for ``--help``."""

_OFFER_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_FLAG = re.compile(r"--[A-Za-z0-9][A-Za-z0-9_.-]*\*?|-[A-Za-z]+")


class InvalidOfferError(Exception):
    """The plugin ran, but what it gave cannot be used. The text names what, and goes behind the plugin's name."""


def check_kind(offer: object, kind: type[Offer], hook: str) -> None:
    """:raises InvalidOfferError: when a hook gave something else than its offers, or one whose fields are of other types."""
    if not isinstance(offer, kind):
        raise InvalidOfferError(f"{hook} gave {described(offer)}, which is no {kind.__name__}")
    _check_fields(offer, kind, f"the {offer.kind.replace('_', ' ')} {offer.name!r}", "")


def check(given: Sequence[Offer]) -> None:
    """:raises InvalidOfferError: naming the first thing that would not work later."""
    seen: set[tuple[str, str]] = set()
    sections = {offer.settings for offer in given if offer.settings is not None}
    if len(sections) > 1:
        names = ", ".join(sorted(section.__name__ for section in sections))
        raise InvalidOfferError(
            f"its offers have different settings ({names}): a plugin has one table, so they share one model"
        )
    for section in sections:
        _check_section(section)
    own = {offer.name for offer in given}
    for offer in given:
        if _OFFER_NAME.fullmatch(offer.name) is None or offer.name in ("auto", "none"):
            raise InvalidOfferError(
                f"{offer.name!r} cannot be the name of an offer: that has lower-case letters, digits, _, . and -, "
                "and is neither auto nor none"
            )
        if (offer.kind, offer.name) in seen:
            raise InvalidOfferError(f"it offers two of kind {offer.kind} with the name {offer.name!r}")
        seen.add((offer.kind, offer.name))
        if isinstance(offer, QuantizerOffer) and offer.head is not None and offer.head not in _settings(offer):
            raise InvalidOfferError(f"{offer.head!r}, which says whether {offer.name!r} packs the head, is no setting of it")
        for rule in (*offer.rules, *offer.idle_rules):
            _check_rule(rule)
        for alias in offer.aliases:
            _check_alias(alias, own)
        for word in offer.foreign_words:
            if (word.flag is None) == (word.env is None):
                raise InvalidOfferError(f"foreign word {word.flag or word.env!r} must be either a flag or a variable")
            _check_flag("foreign word", word)


def check_returned(offer: Offer, function: str, value: object) -> str:
    """What is wrong with what a function of an offer returned: "a dict, which is no core.interfaces.sampler.Sampler"."""
    declared = _hints(_declaring(type(offer), function), True)[function]
    called = next(each for each in (declared, *get_args(declared)) if get_origin(each) is Callable)
    hint = get_args(called)[-1]
    if hint is bool or _mismatch(value, hint) is None:  # anything is true or false
        return ""
    return f"{described(value)}, which is no {_named(hint, full=True)}"


def is_of_type(value: object, wanted: type) -> bool:
    """Whether a fact has a value of its type; of None, unknown, everything may be."""
    return value is None or _mismatch(value, wanted) is None


def described(value: object) -> str:
    """A value in a few words: its text where it is plain, else what it is."""
    if value is None or isinstance(value, (bool, int, float, str)):
        text = repr(value)
        return text if len(text) <= 60 else text[:57] + "..."
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Offer):
        return f"the {type(value).__name__} {value.name!r}"
    name = "function" if inspect.isroutine(value) else type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


# --- fields against their annotations -----------------------------------------------------------------------------------


def _check_fields(record: Any, declared: type, whose: str, path: str) -> None:
    hints = _hints(declared, False)
    for field in dataclasses.fields(declared):
        wrong = _mismatch(getattr(record, field.name), hints[field.name])
        if wrong is not None:
            where, what = wrong
            raise InvalidOfferError(f"{path}{field.name}{where} of {whose} {what}")


def _mismatch(value: Any, hint: Any) -> tuple[str, str] | None:
    """Where in the value, and what is wrong there: ("[0].when", "must be a tuple of Condition, not 3")."""
    if hint in (Any, object):
        return None
    origin, args = get_origin(hint), get_args(hint)
    wrong = "", f"must be {_named(hint)}, not {described(value)}{_advice(value, hint)}"
    if origin in (Union, types.UnionType):
        fitting = [each for each in args if _is_of(value, each)]
        return _mismatch(value, fitting[0]) if fitting else wrong
    if not _is_of(value, hint):
        return wrong
    if origin in (tuple, frozenset):
        places = ((f"[{number}]" if origin is tuple else "", each) for number, each in enumerate(value))
        if origin is tuple and args[-1] is not Ellipsis:
            inner = ((place, each, part) for (place, each), part in zip(places, args, strict=True))
        else:
            inner = ((place, each, args[0]) for place, each in places)
        for place, each, part in inner:
            if (found := _mismatch(each, part)) is not None:
                return f"{place}{found[0]}", found[1]
    if origin is Mapping and isinstance(value, Mapping):
        for key, each in value.items():
            if (found := _mismatch(key, args[0]) or _mismatch(each, args[1])) is not None:
                return f"[{key!r}]{found[0]}", found[1]
    if origin is Callable and isinstance(args[0], list) and not _takes(value, len(args[0])):
        number = len(args[0])
        return "", f"is called with {number} argument{'s' * (number != 1)}, which it does not take"
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = _hints(hint, False)
        for field in dataclasses.fields(hint):
            if (found := _mismatch(getattr(value, field.name), hints[field.name])) is not None:
                return f".{field.name}{found[0]}", found[1]
    return None


def _is_of(value: Any, hint: Any) -> bool:
    """Whether it is of that type, whatever is inside."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in (Any, object):
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin is Literal:
        return value in args
    if origin is type:
        return isinstance(value, type) and issubclass(value, args[0])
    if origin is Callable:
        return callable(value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is tuple and args[-1] is not Ellipsis:
        return isinstance(value, tuple) and len(value) == len(args)
    return isinstance(value, origin or hint)


def _named(hint: Any, full: bool = False) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_named(each, full) for each in args)
    if hint is type(None):
        return "None"
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin is type:
        return f"a subclass of {args[0].__module__}.{args[0].__name__}"
    if origin is Callable:
        return "a function"
    if origin in (tuple, frozenset):
        of = _named(args[0]).removeprefix("a ") if args[-1] is Ellipsis or origin is frozenset else f"{len(args)}"
        return f"a {origin.__name__} of {of}"
    if origin is Mapping:
        return "mapping" if full else "a mapping"
    name = f"{hint.__module__}.{hint.__qualname__}" if full and hint.__module__.startswith("core.interfaces") else hint.__name__
    short = {"str": "string", "float": "number", "int": "whole number", "bool": "True or False"}.get(name, name)
    return short if full or hint is bool else f"a {short}"


def _advice(value: Any, hint: Any) -> str:
    """How to write it, where that is plain to see."""
    origin = get_origin(hint)
    inner = get_args(hint)[0] if origin in (tuple, frozenset) else None
    if inner is None:
        return ""
    if origin is tuple and _is_of(value, inner):
        return ": a comma makes it one, (it,)"
    if origin is frozenset and isinstance(value, str):
        return f": write frozenset({{{value!r}}})"
    return f": write {origin.__name__}(...) around it" if isinstance(value, Collection) and not isinstance(value, str) else ""


def _takes(function: Any, number: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * number)
    except TypeError:
        return False
    except ValueError:  # of a builtin, which tells nothing
        return True
    return True


@cache
def _hints(declared: Any, with_interfaces: bool) -> dict[str, Any]:
    return get_type_hints(declared, localns=_Names(with_interfaces))


def _declaring(kind: type, function: str) -> type:
    """The class of ``core.offers`` that has this field: a plugin may have a subclass of its own."""
    return next(each for each in kind.__mro__ if each.__module__ == offers.__name__ and function in each.__annotations__)


class _Names(dict[str, Any]):
    """What annotations speak of. ``core.offers`` imports the interfaces for type checkers alone."""

    def __init__(self, with_interfaces: bool) -> None:
        super().__init__(vars(builtins) | vars(rules) | vars(offers))
        self._with_interfaces = with_interfaces

    def __missing__(self, name: str) -> Any:
        return getattr(import_module(INTERFACES[name]), name) if self._with_interfaces else object


# --- what annotations do not say ----------------------------------------------------------------------------------------


def _check_section(section: type[Section]) -> None:
    missing = [name for name, info in section.model_fields.items() if info.is_required()]
    if missing:
        raise InvalidOfferError(f"its setting {missing[0]} has no default: give it one, since settings work unset")
    try:
        section()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or section.__name__
        raise InvalidOfferError(f"the default of its setting {name} is refused by its own type: {first['msg']}") from error


def _check_rule(rule: Rule) -> None:
    if not rule.when:
        raise InvalidOfferError(f"rule {rule.id} has no condition: it would refuse everything")


def _check_alias(alias: Alias, own: set[str]) -> None:
    both = alias.chooses is not None and alias.sets is not None
    neither = alias.chooses is None and alias.sets is None
    if (alias.flag is None) == (alias.env is None) or neither or both != (alias.asks is not None):
        raise InvalidOfferError(
            f"alias {alias.flag or alias.env!r} must have a flag or a variable, and choose an offer or set a setting"
        )
    _check_flag("alias", alias)
    if alias.chooses is not None and alias.chooses not in own:
        raise InvalidOfferError(f"alias {alias.flag or alias.env!r} chooses {alias.chooses!r}, which it does not offer")


def _check_flag(title: str, word: Alias | ForeignWord) -> None:
    if word.flag is not None and _FLAG.fullmatch(word.flag) is None:
        raise InvalidOfferError(f"{title} {word.flag!r} is no flag: a flag is written as it is typed, like '--my-flag'")


def _settings(offer: Offer) -> Collection[str]:
    return () if offer.settings is None else offer.settings.model_fields
