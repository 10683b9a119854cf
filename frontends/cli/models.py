"""``dovetail models``: which models are here, fetching one, and whether one is whole."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.errors import ExitCode, UserError
from frontends.cli.findings import show

MEGA = 1e6
WIDE = 120  # columns of a terminal that has room for paths


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dovetail models", description="Which models are here; fetch one, verify one.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser(
        "list",
        help="what was fetched, what is always there, and what lies in folders you name",
        usage="%(prog)s [FOLDER ...] [flags]",
        allow_abbrev=False,
    )
    pull = commands.add_parser("pull", help="fetch a model and verify it", usage="%(prog)s MODEL [flags]", allow_abbrev=False)
    pull.epilog = "MODEL and flags are those of `dovetail serve`: --model-source, --revision, --model-cache and the like."
    verify = commands.add_parser(
        "verify",
        help="whether a model that is here is whole and can be served",
        usage="%(prog)s MODEL [flags]",
        allow_abbrev=False,
    )
    verify.add_argument("--quick", action="store_true", help="compute no hashes of what has known ones")
    verify.epilog = "Exit code 1: it cannot be served as it is."
    for each in (listing, pull, verify):
        each.add_argument("--json", action="store_true", help="as JSON")
    return parser


def models(arguments: Sequence[str]) -> int:
    options, rest = parser().parse_known_args(arguments)
    if options.command == "list":
        first = next((at for at, each in enumerate(rest) if each.startswith("-")), len(rest))
        return listed([Path(os.path.expanduser(each)) for each in rest[:first]], rest[first:], as_json=options.json)
    named = [at for at, each in enumerate(rest) if not each.startswith("-") and (at == 0 or not rest[at - 1].startswith("-"))]
    model = rest.pop(named[0]) if named else None
    if model is None and not any(each.startswith("--model=") or each == "--model" for each in rest):
        raise UserError.of("no model is named", "", f"dovetail models {options.command} MODEL, as --model of serve takes it")
    flags = [*rest, *([] if model is None else ["--model", model])]
    return (pulled if options.command == "pull" else verified)(options, flags)


# --- list ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listed:
    """``name`` is what --model takes. ``nbytes`` is 0 for what takes no disk, None for what is not here."""

    name: str
    kind: str
    state: str
    nbytes: int | None = None
    where: str = ""


def listed(folders: Sequence[Path], flags: Sequence[str], *, as_json: bool) -> int:
    from core.compose.configuration import read, refuse_with
    from core.compose.first_pass import first_pass

    first = first_pass(flags)
    configuration = read(first, first.discover())
    refuse_with(configuration.problems)
    found = list(known(configuration.settings, folders, configuration.manager))
    if as_json:
        sys.stdout.write(json.dumps([asdict(each) for each in found], indent=2) + "\n")
        return ExitCode.OK
    from rich import box
    from rich.table import Table

    from frontends.cli.screen import console

    output = console()
    titles = ["model", "kind", "state", "MB", *(["where"] if output.width >= WIDE else [])]
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=title == "model", overflow="fold", justify="right" if title == "MB" else "left")
    home = os.path.expanduser("~")
    for each in found:
        size = "" if each.nbytes is None else f"{each.nbytes / MEGA:.1f}"
        table.add_row(*[each.name, each.kind, each.state, size, each.where.replace(home, "~")][: len(titles)])
    output.print(table, soft_wrap=not sys.stdout.isatty())
    return ExitCode.OK


def known(settings: Mapping[str, Any], folders: Sequence[Path], manager: Any) -> Iterator[Listed]:
    from core.models import demo, random_format
    from core.models.sources import cache_folder, recognized
    from frontends.cli.located import checkpoint_formats
    from frontends.cli.machine import size_of

    file = demo.place(cache_folder(settings))
    if file.is_file():
        state = "here" if demo.is_whole(file) else "torn: pull it again"
        yield Listed(demo.NAME, "gguf", state, file.stat().st_size, str(file))
    else:
        yield Listed(demo.NAME, "gguf", f"not here: {demo.WHEEL_BYTES / MEGA:.0f} MB through pip")
    yield from fetched(settings)
    formats = checkpoint_formats(manager)
    for folder in folders:
        if not folder.is_dir():
            raise UserError.of(f"there is no folder {folder}", "FOLDER", "check the path")
        for path in sorted({folder, *folder.iterdir()}):
            if names := recognized(path, formats):
                size = path.stat().st_size if path.is_file() else size_of(path)
                yield Listed(str(path), names[0], "here", size, str(path.absolute()))
    for name in random_format.SHAPES:
        yield Listed(f"{random_format.PREFIX}{name}", "random", "made when asked for", 0)


def fetched(settings: Mapping[str, Any]) -> Iterator[Listed]:
    """What was fetched from hubs. AI Studio's client keeps its own folders only where --model-cache names one."""
    from core.models.sources import cache_folder

    cache = cache_folder(settings)
    yield from of_huggingface(cache)
    for hub, below in (("modelscope", "models"), ("modelscope", ""), ("aistudio", "")):
        root = cache / hub / below if cache is not None else Path(os.path.expanduser("~")) / ".cache" / hub / "hub" / below
        for config in sorted(root.glob("[!.]*/[!.]*/config.json")):
            folder = config.parent
            if folder.is_symlink() or folder.parent.name == "models":
                continue
            yield of_folder("/".join(folder.parts[-2:]).replace("___", "."), hub, folder)


def of_huggingface(cache: Path | None) -> Iterator[Listed]:
    import huggingface_hub
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = huggingface_hub.scan_cache_dir(cache).repos
    except (CacheNotFound, ValueError):  # there is none yet, or it is a file
        return
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        if repo.repo_type == "model":
            newest = max(repo.revisions, key=lambda revision: revision.last_modified, default=None)
            if newest is not None:
                yield of_folder(repo.repo_id, "huggingface", Path(newest.snapshot_path), repo.size_on_disk)


def of_folder(name: str, kind: str, folder: Path, nbytes: int | None = None) -> Listed:
    from frontends.cli.machine import size_of

    weights = [*folder.glob("*.safetensors"), *folder.glob("*.gguf")]
    pickles = [*folder.glob("*.bin"), *folder.glob("*.pt")]
    state = "here" if weights else "pickles, which are never read" if pickles else "in part: pull it"
    return Listed(name, kind, state, size_of(folder) if nbytes is None else nbytes, str(folder))


# --- pull and verify ----------------------------------------------------------------------------------------------------


def pulled(options: argparse.Namespace, flags: Sequence[str]) -> int:
    """Progress is shown by the hub's own client, on a terminal."""
    from core.models.sources import fetch, text_files
    from frontends.cli.located import located
    from frontends.cli.verifying import verify

    found = located(flags)
    folder = fetch(found.folder, found.settings)
    text_files(folder, found.settings)
    return show(verify(found.with_folder(folder), hashes=False), as_json=options.json)


def verified(options: argparse.Namespace, flags: Sequence[str]) -> int:
    from frontends.cli.located import located
    from frontends.cli.verifying import verify

    return show(verify(located(flags, fetching=False), hashes=not options.quick), as_json=options.json)
