"""Choosing the parsers of what the model says: where nobody names one, the one that recognizes the model."""

from __future__ import annotations

from core.compose.automatic import Resolved
from core.compose.calling import call
from core.compose.choose import Selection
from core.compose.configuration import Configuration
from core.compose.find_model import Found
from core.compose.settings import KIND_SETTINGS
from core.errors import Problem
from core.offers import ReasoningParserOffer, ToolParserOffer


def recognize_parsers(configuration: Configuration, selection: Selection, resolved: Resolved, found: Found) -> list[Problem]:
    """Nobody is overruled: neither who names a parser, nor who says "none". Warns of one that can hardly be of use."""
    for kind in (ToolParserOffer.kind, ReasoningParserOffer.kind):
        if kind in selection.offers or kind in selection.origins:
            continue
        setting = KIND_SETTINGS[kind]
        refused = {no.value for no in configuration.refused if no.key == (setting,)}
        template = _template(found, configuration)
        fitting = [
            each
            for each in configuration.manager.offers(kind)
            if isinstance(each.offer, (ToolParserOffer, ReasoningParserOffer))
            and each.name not in refused
            and call(each, "recognizes", found.config, template)
        ]
        if len(fitting) == 1:
            selection.take(kind, fitting[0], "auto")
            resolved.decide(setting, fitting[0].name, "the model's chat template is one of those it knows")
        elif fitting:
            names = ", ".join(each.name for each in fitting)
            resolved.reasons[setting] = f"none, since several know the model's chat template: {names}"

    return _unheard(configuration, selection, found)


def _unheard(configuration: Configuration, selection: Selection, found: Found) -> list[Problem]:
    """A model calls tools when its template tells it of them."""
    chosen = selection.choice(ToolParserOffer.kind)
    if chosen is None or "tools" in _template(found, configuration):
        return []
    return [
        Problem(
            f"the chat template of {found.folder.name} does not tell the model of tools: it calls them only where it has to, "
            "without knowing what they are for",
            chosen.origin,
            ("--chat-template FILE, with one that does", "choose a model that was trained to call tools"),
        )
    ]


def _template(found: Found, configuration: Configuration) -> str:
    from core.text.chat_template import template_source

    if found.template is None:
        found.template = template_source(found.folder, configuration.settings["chat_template"])
    return found.template
