"""``dovetail quantize``: a model, packed, in a folder."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from core.errors import ExitCode, UserError, forbidden

GIB = 1 << 30


def quantize(arguments: Sequence[str]) -> int:
    """:raises UserError: when it cannot be done."""
    named = [] if not arguments or arguments[0].startswith("-") else [arguments[0]]
    options, rest = parser().parse_known_args(arguments[len(named) :])
    if options.shard_size <= 0:
        raise UserError.of("a file holds more than 0 GiB", "--shard-size", "leave it out, or give a number of GiB")
    from core.saving import save_packed

    model = ["--model", *named] if named else []
    try:
        saved = save_packed([*model, *rest], Path(os.path.expanduser(options.output)), int(options.shard_size * GIB))
    except PermissionError as error:
        raise forbidden(error) from error
    layouts = ", ".join(f"{role} {layout}" for role, layout in saved.packing.layouts.items())
    sys.stdout.write(f"{saved.folder}: {saved.nbytes / 1e6:.1f} MB, packed as {saved.packing.quantizer} ({layouts})\n")
    return ExitCode.OK


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dovetail quantize",
        usage="%(prog)s MODEL --quantization NAME --output FOLDER [settings of the quantizer]",
        description="Pack a model's weights while they stream in and save them: MODEL is what --model of the server takes. "
        "The folder is a model like any other, for --model; its config.json says how it is packed, which no flag can change.",
        epilog="Settings are those that `dovetail serve --help` lists for the quantizer's plugin, those about the model, and "
        "--dtype for what is not packed.",
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="does not exist yet, or is empty")
    parser.add_argument(
        "--shard-size", type=float, default=2.0, metavar="GIB", help="the largest file of weights (default: %(default)g)"
    )
    return parser
