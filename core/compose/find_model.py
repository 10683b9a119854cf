"""Finding the model before any weight is read: where it lies, which format reads it, which family it is of, its shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from core.compose.automatic import Resolved
from core.compose.calling import blaming, call
from core.compose.choose import Selection
from core.compose.configuration import Configuration
from core.compose.plan import Plan
from core.errors import UserError
from core.interfaces.model import DecoderSpec, ModelFolder
from core.models.loading import read_config
from core.models.packed import KEY, Packing, read_packing
from core.models.sources import resolve
from core.offers import CheckpointFormatOffer, ModelOffer, QuantizerOffer
from core.plugin_manager import Offered, PluginManager
from core.suggest import did_you_mean


@dataclass
class Found:
    """The model, before any weight is read."""

    folder: ModelFolder
    config: Mapping[str, Any]
    architecture: str
    spec: DecoderSpec
    family: Offered
    format: Offered
    packing: Packing | None = None  # of a checkpoint that was saved packed
    template: str | None = None  # the chat template's source, once it was read


def find_model(configuration: Configuration, selection: Selection, resolved: Resolved, known: Plan | None = None) -> Found:
    """``known``: a plan of the same model, so that nothing of it is looked for or read again.

    :raises UserError: when there is no such model, or nobody chosen can run it.
    """
    manager = configuration.manager
    offered_formats = {
        each.name: each for each in manager.offers(CheckpointFormatOffer.kind) if each.plugin in selection.format_plugins
    }
    formats = {
        name: call(each, "create") for name, each in offered_formats.items() if isinstance(each.offer, CheckpointFormatOffer)
    }
    if known is not None:
        folder, config = known.model, known.config
    else:
        folder = resolve(resolved.settings["model"], resolved.settings, formats)
        config = read_config(folder, formats)
    architectures = [str(name) for name in config.get("architectures") or ()]
    family = _family(architectures, manager, selection)
    if not isinstance(family.offer, ModelOffer):
        raise TypeError(f"{family.name} is no model")
    packing = read_packing(
        config, folder.name, [each.name for each in manager.offers(QuantizerOffer.kind)], lambda found: _adopted(found, manager)
    )
    of_family = call(family, "family")
    with blaming(family, "spec or text", type(of_family).__module__):
        spec = of_family.spec({key: value for key, value in config.items() if key != KEY})
        folder = replace(folder, family=of_family.text())
    architecture = next(name for name in architectures if name in family.offer.architectures)
    template = known.template if known is not None else None
    return Found(folder, config, architecture, spec, family, offered_formats[folder.format], packing, template)


def _adopted(found: Mapping[str, Any], manager: PluginManager) -> Packing | None:
    """The quantizer that reads what another program packed; the first by name, should there be several."""
    for each in sorted(manager.offers(QuantizerOffer.kind), key=lambda each: each.name):
        if isinstance(each.offer, QuantizerOffer) and each.offer.reads is not None:
            settings = call(each, "reads", found)
            if settings is not None:
                return Packing(each.name, each.plugin, settings, {}, adopted=True)
    return None


def _family(architectures: list[str], manager: PluginManager, selection: Selection) -> Offered:
    """The chosen family that answers to the checkpoint; one whose plugin was named goes before one that is always there."""
    answering = [
        each
        for each in manager.offers(ModelOffer.kind)
        if isinstance(each.offer, ModelOffer) and set(each.offer.architectures) & set(architectures)
    ]
    chosen = [each for each in answering if each.plugin in selection.model_plugins]
    named = [each for each in chosen if each.plugin in selection.named]
    best = named or chosen
    title = " or ".join(architectures) or "unnamed"
    if len(best) == 1:
        return best[0]
    if best:
        raise UserError.of(
            f"{len(best)} plugins answer to the architecture {title}: {', '.join(each.plugin for each in best)}",
            "model",
            *(f"leave one out: --without {each.plugin}" for each in best),
        )
    if answering:
        plugins = ", ".join(dict.fromkeys(each.plugin for each in answering))
        raise UserError.of(f"the architecture {title} needs the plugin {plugins}", "model", f"add it: --plugins {plugins}")
    known = sorted(
        {
            name
            for each in manager.offers(ModelOffer.kind)
            if isinstance(each.offer, ModelOffer)
            for name in each.offer.architectures
        }
    )
    near = did_you_mean(architectures[0], known) if architectures else ""
    raise UserError.of(
        f"no installed plugin knows the architecture {title}{near}",
        "model",
        f"choose a model of one of these: {', '.join(known) or 'none is installed'}",
    )
