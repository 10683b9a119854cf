"""A model, found as a server would find it, without a device, a backend or a plan around it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.compose.configuration import read, refuse_with
from core.compose.first_pass import first_pass
from core.compose.plan import by_origin
from core.errors import UserError
from core.interfaces.frontend import ChatTemplate, Tokenizer
from core.interfaces.model import CheckpointFormat, FamilyText, ModelFolder
from core.models.demo import NAME, is_whole
from core.models.loading import read_config
from core.models.sources import HUB_FILE, RANDOM, kept, local, recognized, resolve, text_files
from core.offers import CheckpointFormatOffer, ModelOffer
from core.plugin_manager import PluginManager


@dataclass(frozen=True)
class Located:
    settings: Mapping[str, Any]
    folder: ModelFolder
    formats: Mapping[str, CheckpointFormat]
    config: Mapping[str, Any]
    manager: PluginManager

    def with_folder(self, folder: ModelFolder) -> Located:
        return dataclasses.replace(self, folder=folder)


def located(flags: Sequence[str], *, fetching: bool = True) -> Located:
    """By the server's flags, variables and config file. ``fetching``: what is missing of its small files is fetched.

    :raises UserError: when there is no such model, it is not here, or its format is unknown.
    """
    first = first_pass(flags)
    manager = first.discover()
    configuration = read(first, manager)
    refuse_with(configuration.problems)
    settings = configuration.settings
    formats = checkpoint_formats(manager)
    model = settings["model"]
    try:
        if fetching or model.startswith(RANDOM) or Path(os.path.expanduser(model)).exists():
            folder = resolve(model, settings, formats)
        else:
            folder = _kept(model, settings, formats)
        config = read_config(folder, formats)
        return Located(settings, dataclasses.replace(folder, family=family_text(config, manager)), formats, config, manager)
    except UserError as error:
        origins = {".".join(key): said.origin for key, said in configuration.given.items()}
        raise UserError(*(by_origin(each, origins) for each in error.problems), exit_code=error.exit_code) from error


def _kept(model: str, settings: Mapping[str, Any], formats: Mapping[str, CheckpointFormat]) -> ModelFolder:
    place = kept(model, settings)
    if place is None:
        raise UserError.of(f"{model} is not here", "--model", f"fetch it: dovetail models pull {model}", "dovetail models list")
    if model == NAME:
        if not is_whole(place):
            raise UserError.of(f"{place} is not whole", "--model", f"fetch it again: dovetail models pull {model}")
        return resolve(model, settings, formats)
    if HUB_FILE.fullmatch(model) is None and not (place / "config.json").is_file() and not recognized(place, formats):
        raise UserError.of(f"{place} has no config.json", "--model", f"fetch the rest: dovetail models pull {model}")
    return local(model, place, formats)


def family_text(config: Mapping[str, Any], manager: PluginManager) -> FamilyText:
    """What the installed family that answers to this config says where a checkpoint's files do not."""
    architectures = {str(name) for name in config.get("architectures") or ()}
    for each in manager.offers(ModelOffer.kind):
        if isinstance(each.offer, ModelOffer) and architectures & set(each.offer.architectures):
            return each.offer.family().text()
    return FamilyText()


def checkpoint_formats(manager: PluginManager) -> dict[str, CheckpointFormat]:
    offers = [each.offer for each in manager.offers(CheckpointFormatOffer.kind)]
    return {offer.name: offer.create() for offer in offers if isinstance(offer, CheckpointFormatOffer)}


def tokenizer_of(found: Located) -> Tokenizer:
    """:raises UserError: when it has none that can be read."""
    from core.text.tokenizer import load_tokenizer

    return load_tokenizer(text_files(found.folder, found.settings), found.config)


def template_of(found: Located, tokenizer: Tokenizer) -> ChatTemplate | None:
    from core.text.chat_template import load_chat_template

    folder = text_files(found.folder, found.settings)
    template = load_chat_template(folder, found.settings["chat_template"], tokenizer)
    return template or load_chat_template(found.folder, None, tokenizer)
