"""Who packs the output head: the layers' quantizer, as it says itself; another one; or nobody. One setting says so for all."""

from __future__ import annotations

from typing import Any

from core.compose.automatic import section_of
from core.compose.calling import call
from core.compose.choose import Selection, no_offer
from core.compose.configuration import Configuration
from core.compose.settings import KIND_SETTINGS
from core.compose.vocabulary import Said
from core.errors import Problem
from core.offers import HEAD_QUANTIZER, QuantizerOffer
from core.plugin_manager import Offered

SETTING = KIND_SETTINGS[HEAD_QUANTIZER]
ANY_WIDTH = 1024  # of a head, for a quantizer that is asked whether it packs one at all


def select_head(configuration: Configuration, selection: Selection) -> None:
    """When the layers' quantizer is chosen, and before the model is known."""
    layers = selection.offers.get(QuantizerOffer.kind)
    asked, origin = configuration.settings.get(SETTING, "auto"), configuration.origin(SETTING)
    by_itself = layers is not None and _packs_head(layers, section_of(configuration, selection, QuantizerOffer.kind))
    if asked == "auto":
        if layers is not None and by_itself:
            selection.take(HEAD_QUANTIZER, layers, "auto")
        return
    if asked == "none":
        selection.origins[HEAD_QUANTIZER] = origin
    else:
        offers = {each.name: each for each in configuration.manager.offers(HEAD_QUANTIZER)}
        if layers is not None and by_itself:
            offers.setdefault(layers.name, layers)
        if asked not in offers:
            selection.problems.append(no_offer(HEAD_QUANTIZER, asked, list(offers.values()), configuration))
            return
        selection.take(HEAD_QUANTIZER, offers[asked], origin)
    if layers is not None and by_itself != with_layers(selection):
        selection.problems += _contradiction(layers, configuration, asked, origin)


def with_layers(selection: Selection) -> bool:
    """Whether the quantizer of the layers packs the head too."""
    head = selection.offers.get(HEAD_QUANTIZER)
    return head is not None and head == selection.offers.get(QuantizerOffer.kind)


def settle_head(configuration: Configuration, selection: Selection, stored: bool) -> None:
    """The plugins' own settings about the head say from now on what was chosen.

    :param stored: whether the layers are packed in the checkpoint: then the settings of their quantizer stay as it has them.
    """
    layers, head = selection.offers.get(QuantizerOffer.kind), selection.offers.get(HEAD_QUANTIZER)
    origin = selection.origins.get(HEAD_QUANTIZER, "default")
    if layers is not None and not stored:
        _say(layers, with_layers(selection), origin, configuration)
    if head is not None and (layers is None or head.plugin != layers.plugin):
        _say(head, True, origin, configuration)


def _say(offered: Offered, packs: bool, origin: str, configuration: Configuration) -> None:
    name = _setting(offered)
    if name is not None and configuration.section(offered.plugin)[0].get(name) != packs:
        configuration.given[(offered.plugin, name)] = Said((offered.plugin, name), packs, origin)


def _packs_head(offered: Offered, section: Any) -> bool:
    name, offer = _setting(offered), offered.offer
    if name is not None:
        return bool(getattr(section, name))
    if not isinstance(offer, QuantizerOffer) or offer.stored_bits is None:
        return False
    return call(offered, "stored_bits", section, "head", ANY_WIDTH) is not None


def _setting(offered: Offered) -> str | None:
    return offered.offer.head if isinstance(offered.offer, QuantizerOffer) else None


def _contradiction(layers: Offered, configuration: Configuration, asked: str, origin: str) -> list[Problem]:
    """The plugin's own setting was given, says otherwise, and does not lie below the one for all."""
    name = _setting(layers)
    said = None if name is None else configuration.given.get((layers.plugin, name))
    if said is None:
        return []
    packs = bool(configuration.section(layers.plugin)[0][str(name)])
    if configuration.outranks(origin, said.origin) or not (packs or configuration.outranks(said.origin, origin)):
        return []
    what = f"{layers.plugin}.{name} = {packs} and {SETTING} = {asked!r} contradict each other about the head"
    return [Problem(what, f"{said.origin}, {origin}", (f"drop {said.origin}", f"drop {origin}"))]
