"""Whether a model that is here is whole: its files, its hashes where they are known, its weights' shapes, its text side."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UserError
from frontends.cli.findings import Finding, fail, of_problem, ok, warn
from frontends.cli.located import Located, template_of, tokenizer_of

if TYPE_CHECKING:
    from core.compose.plan import Plan

_SHA256, _GIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_PLENTY = 1 << 46  # bytes: whether this machine can serve it is another question
PULL = "dovetail models pull"


def verify(found: Located, *, hashes: bool) -> Iterator[Finding]:
    where = found.folder.path
    yield ok("model", f"{found.folder.name}: {found.folder.format}" + ("" if where is None else f", {where}"))
    if hashes and where is not None:
        yield from of_hashes(found.folder.name, where)
    plan = None
    for each in composed(found):
        if isinstance(each, Finding):
            yield each
        else:
            plan = each
    if plan is not None:
        yield from of_weights(plan)
        yield from of_text(found, plan)


def of_hashes(model: str, where: Path) -> Iterator[Finding]:
    """Hugging Face's cache names a file by its hash; the demo's is known to this program."""
    known = list(_known_hashes(model, where))
    wrong = [path for path, expected, hashes in known if expected not in hashes(path)]
    for path in wrong:
        remedy = f"delete {path.resolve()}, then {PULL} {model}"
        yield fail("hashes", f"{path.name} is damaged: its hash is not the one it was published with", remedy)
    if known and not wrong:
        yield ok("hashes", f"{len(known)} of its files have known ones, and these are right")
    elif not known:
        yield ok("hashes", "none are known for these files")


def _known_hashes(model: str, where: Path) -> Iterator[tuple[Path, str, Callable[[Path], Container[str]]]]:
    from core.models import demo

    if model == demo.NAME:
        yield where, demo.FILE_SHA256, _sha256
        return
    for path in sorted(where.iterdir()) if where.is_dir() else [where]:
        target = path.resolve().name if path.is_symlink() else ""
        if _SHA256.fullmatch(target):
            yield path, target, _sha256
        elif _GIT.fullmatch(target):
            yield path, target, _git


def _sha256(path: Path) -> Container[str]:
    with path.open("rb") as file:
        return (hashlib.file_digest(file, "sha256").hexdigest(),)


def _git(path: Path) -> Container[str]:
    """As git names a file; some mirrors give the plain hash instead."""
    content = path.read_bytes()
    header = b"blob %d\0" % len(content)
    return [hashlib.sha1(data, usedforsecurity=False).hexdigest() for data in (header + content, content)]


def composed(found: Located) -> Iterator[Finding | Plan]:
    """The plan of a machine that has plenty of everything, so that what is refused is the model's own fault."""
    from core.compose.composition import attempt
    from core.compose.first_pass import first_pass
    from core.compose.probe import DeviceProbe, Gpu

    place = found.folder.path
    name = str(place) if place is not None and found.folder.name != "demo" else found.folder.name
    cache = found.settings.get("model_cache")
    flags = ["--model", name, *(["--model-cache", cache] if cache else [])]
    cpu = DeviceProbe("plenty", 64, (), _PLENTY, _PLENTY)
    gpu = DeviceProbe("plenty", 64, (), _PLENTY, _PLENTY, (Gpu("plenty", 9.0, _PLENTY, _PLENTY),))
    attempts = [attempt(first_pass(flags, env={}), found.manager, probe) for probe in (cpu, gpu)]  # some formats are a GPU's
    best = next((each for each in attempts if each.plan is not None), attempts[0])
    yield from (of_problem("fail", "config", problem) for problem in best.problems)
    if best.plan is not None:
        spec = best.plan.spec
        packed = f", packed by {best.plan.packing.quantizer}" if best.plan.packing is not None else ""
        shape = f"{spec.num_layers} layers of {spec.hidden}, {spec.parameters / 1e6:.1f} M parameters{packed}"
        yield ok("config", f"{best.plan.facts['model.architecture']}, {shape}")
        yield best.plan


def of_weights(plan: Plan) -> Iterator[Finding]:
    from core.compose.build import stored_weights
    from core.plugin_manager import PluginManager

    count = 0
    try:
        with stored_weights(plan, PluginManager.load_only(plan.plugins)) as weights:
            for _ in weights:
                count += 1
    except UserError as error:
        yield from (of_problem("fail", "weights", problem) for problem in error.problems)
        return
    yield ok("weights", f"all {count} are here, in the shapes the config asks for")
    if plan.model.path is not None and plan.model.path.is_dir():
        yield from of_index(plan.model.path)


def of_index(folder: Path) -> Iterator[Finding]:
    from core.models.safetensors_file import read_header

    for index in sorted(folder.glob("*.safetensors.index.json")):
        content = json.loads(index.read_bytes())
        stated = (content.get("metadata") or {}).get("total_size")
        files = {index.parent / name for name in content["weight_map"].values()}
        stored = sum(span.end - span.start for file in files for span in read_header(file).values())
        if isinstance(stated, int) and stated != stored:
            yield warn(
                "index", f"{index.name} speaks of {stated} bytes of tensors, and the shards hold {stored}", "pull it again"
            )
        else:
            yield ok("index", f"{len(files)} shards hold what it says")


def of_text(found: Located, plan: Plan) -> Iterator[Finding]:
    from core.text import generation_defaults

    try:
        tokenizer = tokenizer_of(found)
        template = template_of(found, tokenizer)
        defaults = generation_defaults(found.folder)
    except UserError as error:
        yield from (of_problem("fail", "text", problem) for problem in error.problems)
        return
    if tokenizer.vocab_size > plan.spec.vocab:
        what = f"has {tokenizer.vocab_size} tokens, and the model {plan.spec.vocab}: texts may have ids that it refuses"
        yield warn("tokenizer", what, "fetch tokenizer and model of one publisher")
    else:
        yield ok(
            "tokenizer", f"{tokenizer.vocab_size} tokens, ended by {', '.join(map(str, tokenizer.eos_token_ids)) or 'none'}"
        )
    if not tokenizer.eos_token_ids:
        yield warn("tokenizer", "no token ends a text: answers go on to their longest", 'state "eos_token_id" in config.json')
    if template is None:
        yield warn("chat template", "none: chat requests are refused", "--chat-template FILE")
    else:
        yield ok("chat template", "parses")
    if defaults:
        yield ok("sampling", ", ".join(f"{name} {value:g}" for name, value in defaults.items()))
