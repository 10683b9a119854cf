"""``dovetail tokenizer``: a model's tokens, without the model."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ExitCode, RequestError, UserError

if TYPE_CHECKING:
    from core.interfaces.frontend import Tokenizer

_COLOURS = (46, 44, 42, 45, 43)  # backgrounds that take turns
_SPECIAL = 41


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dovetail tokenizer",
        description="A model's tokens, without the model. TEXT may also be a file, by --file, or piped in.",
        epilog="--model says whose; it and the other flags (--tokenizer, --chat-template, --revision, --model-source ...) are "
        "those of `dovetail serve`.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    encode = commands.add_parser("encode", help="text to ids", allow_abbrev=False)
    decode = commands.add_parser("decode", help="ids to text", allow_abbrev=False)
    count = commands.add_parser("count", help="how many tokens a text has", allow_abbrev=False)
    pieces = commands.add_parser("show", help="a text cut into its tokens, with their ids", allow_abbrev=False)
    chat = commands.add_parser("chat", help="what the chat template makes of messages", allow_abbrev=False)
    for each in (encode, count, pieces):
        each.usage = "%(prog)s [TEXT] [flags]"
        each.add_argument("--no-special", action="store_true", help="without what stands before and after every text")
    for each in (encode, count, pieces, chat):
        each.add_argument("-f", "--file", metavar="FILE", help="read this; - for what is piped in")
    decode.usage = "%(prog)s ID [ID ...] [flags]"
    decode.add_argument("-f", "--file", metavar="FILE", help="ids in a file, a JSON list or numbers between spaces or commas")
    decode.add_argument("--skip-special", action="store_true", help="leave control tokens out of the text")
    chat.usage = "%(prog)s [MESSAGES] [flags]"
    chat.description = (
        'MESSAGES is the JSON of a list of messages, or of a request that has "messages", "tools" and "chat_template_kwargs".'
    )
    chat.add_argument("--no-generation-prompt", action="store_true", help="without the beginning of the answer")
    chat.add_argument("--ids", action="store_true", help="the ids of what is rendered")
    for each in (encode, decode, count, pieces, chat):
        each.add_argument("--json", action="store_true", help="as JSON")
    return parser


def tokenizer(arguments: Sequence[str]) -> int:
    options, rest = parser().parse_known_args(arguments)
    given, flags = _given(rest)
    from frontends.cli.located import located, template_of, tokenizer_of

    found = located(flags)
    tokens = tokenizer_of(found)
    if options.command == "chat":
        template = template_of(found, tokens)
        if template is None:
            raise UserError.of(f"{found.folder.name} has no chat template", "--model", "--chat-template FILE")
        return _chat(_read(" ".join(given), options.file), options, template, tokens)
    if options.command == "decode":
        ids = _ids(_read(" ".join(given), options.file), tokens)
        text = tokens.decode(ids, skip_special_tokens=options.skip_special)
        return _print({"text": text} if options.json else text)
    text = _read(" ".join(given), options.file)
    ids = tokens.encode(text, add_special_tokens=not options.no_special)
    match options.command:
        case "encode":
            return _print(ids if options.json else " ".join(map(str, ids)))
        case "count":
            counted = {"tokens": len(ids), "characters": len(text), "bytes": len(text.encode("utf-8", "replace"))}
            return _print(counted if options.json else str(len(ids)))
        case _:
            return _show(ids, tokens, as_json=options.json)


def _given(rest: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before the first flag is the text; then come the server's flags."""
    at = next((at for at, each in enumerate(rest) if each.startswith("--")), len(rest))
    return list(rest[:at]), list(rest[at:])


def _read(given: str, file: str | None) -> str:
    if given and file is not None:
        raise UserError.of("a text and a file are given", "--file", "give one of them")
    if given:
        return given
    try:
        if file is None and sys.stdin.isatty():
            raise UserError.of("no text is given", "", "give it before the flags, with --file, or through a pipe")
        text = sys.stdin.read() if file in (None, "-") else Path(os.path.expanduser(str(file))).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError.of("the text is not valid UTF-8", file or "", "give it in UTF-8") from None
    except PermissionError:
        raise
    except OSError as error:
        raise UserError.of(f"{file} cannot be read: {(error.strerror or str(error)).lower()}", "--file") from None
    return text.removesuffix("\n")


def _ids(text: str, tokens: Tokenizer) -> list[int]:
    words = [word.lstrip("0") or "0" for word in text.replace(",", " ").replace("[", " ").replace("]", " ").split()]
    longest = len(str(tokens.vocab_size))
    strange = next((word for word in words if not word.isdecimal() or int(word[: longest + 1]) >= tokens.vocab_size), None)
    if strange is not None or not words:
        what = f"{strange!r} is no id of this tokenizer" if words else "no ids are given"
        raise UserError.of(what, "", f"ids are whole numbers below {tokens.vocab_size}")
    return [int(word) for word in words]


def _chat(text: str, options: argparse.Namespace, template: Any, tokens: Tokenizer) -> int:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError.of(f"the messages are not JSON: {str(error).lower()}", options.file or "") from None
    request = said if isinstance(said, dict) else {"messages": said}
    more = request.get("chat_template_kwargs") or {}
    if not isinstance(more, dict) or {"messages", "add_generation_prompt"} & set(more):
        raise UserError.of("chat_template_kwargs must be an object of the template's own variables", options.file or "")
    more |= {"tools": request["tools"]} if request.get("tools") else {}
    if not isinstance(request.get("messages"), list):
        raise UserError.of("there is no list of messages", options.file or "", '[{"role": "user", "content": "Hello"}]')
    try:
        rendered = template.render(request["messages"], add_generation_prompt=not options.no_generation_prompt, **more)
    except RequestError as error:
        raise UserError.of(error.message, options.file or "") from None
    ids = tokens.encode(rendered, add_special_tokens=False)
    if options.json:
        return _print({"prompt": rendered, "prompt_token_ids": ids})
    return _print(" ".join(map(str, ids)) if options.ids else rendered)


def _show(ids: Sequence[int], tokens: Tokenizer, *, as_json: bool) -> int:
    from frontends.cli.screen import coloured

    if as_json:
        return _print([
            {"id": each, "text": tokens.token_text(each), "bytes": list(tokens.token_bytes(each)),
             "special": each in tokens.special_ids} for each in ids
        ])  # fmt: skip
    if coloured(sys.stdout):
        sys.stdout.write("".join(_pieces(ids, tokens)) + "\n\n")
    width = max((len(str(each)) for each in ids), default=1)
    for each in ids:
        special = "  (control token)" if each in tokens.special_ids else ""
        sys.stdout.write(f"{each:>{width}}  {_visible(tokens, each)}{special}\n")
    sys.stdout.write(f"{len(ids)} tokens\n")
    return ExitCode.OK


def _pieces(ids: Sequence[int], tokens: Tokenizer) -> Iterator[str]:
    for number, each in enumerate(ids):
        colour = _SPECIAL if each in tokens.special_ids else _COLOURS[number % len(_COLOURS)]
        text = _visible(tokens, each)[1:-1]
        yield f"\033[30;{colour}m{text}\033[0m" + ("\n" if text.endswith("\\n") else "")


def _visible(tokens: Tokenizer, token: int) -> str:
    """As a Python literal; what is a part of a character, as its bytes."""
    raw = tokens.token_bytes(token)
    try:
        return repr(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(raw)[1:]


def _print(value: Any) -> int:
    sys.stdout.write((value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)) + "\n")
    return ExitCode.OK
