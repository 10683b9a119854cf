"""``dovetail completion``: a static script for a shell, made from what is installed now, plugins and their flags included."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

from core.errors import ExitCode
from frontends.cli.main import COMMANDS

SHELLS = ("bash", "zsh", "fish")
_SERVES = frozenset({"serve", "chat", "complete", "run-batch", "tokenizer", "models", "quantize", "plan", "bench", "doctor",
                     "collect-env"})  # fmt: skip
_PRINTS_HELP = ("bench", "plan")  # their parsers are their own
_FILES = ("--config", "--file", "--input-file", "--output-file", "--output", "--chat-template", "--tokenizer", "--model-cache")
_OPTION = re.compile(r"^  (?:-\w(?: \S+)?, )?(--[a-z][a-z0-9-]*)", re.MULTILINE)


@dataclass
class Command:
    """``flags``: those of the command and, where it hands flags on, of the server; with what each may be set to."""

    summary: str
    flags: dict[str, tuple[str, ...]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)  # subcommand -> what --help says of it


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dovetail completion",
        description="Print a script that completes dovetail's commands, flags and their values, those of installed plugins "
        "included. Make it again after installing a plugin.",
        epilog="bash: source <(dovetail completion bash), in ~/.bashrc; zsh: the same, in ~/.zshrc after compinit; "
        "fish: dovetail completion fish > ~/.config/fish/completions/dovetail.fish",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser


def completion(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    script = {"bash": bash, "zsh": zsh, "fish": fish}[options.shell]
    sys.stdout.write(script(commands()))
    return ExitCode.OK


# --- what there is to complete ------------------------------------------------------------------------------------------


def commands() -> dict[str, Command]:
    server = server_flags()
    found = {}
    for name, (summary, place) in COMMANDS.items():
        command = found[name] = Command(summary, {"--help": ()})
        if name in _PRINTS_HELP:
            command.flags |= dict.fromkeys(_OPTION.findall(_help(place)), ())
        elif name != "serve":
            _take(import_module(place.partition(":")[0]).parser(), command)
        if name in _SERVES:
            command.flags = server | command.flags if name != "serve" else command.flags | server
            command.flags["--model"] = server["--model"]
    return found


def server_flags() -> dict[str, tuple[str, ...]]:
    from core.compose.actions import ACTIONS
    from core.compose.settings import KIND_SETTINGS
    from core.compose.vocabulary import Vocabulary
    from core.models.random_format import PREFIX, SHAPES
    from core.plugin_manager import PluginManager

    manager = PluginManager.discover()
    kinds = {setting: kind for kind, setting in KIND_SETTINGS.items()}
    plugins = tuple(plugin.name for plugin in manager.plugins)
    flags: dict[str, tuple[str, ...]] = dict.fromkeys((*ACTIONS, "--config"), ())
    for name, word in Vocabulary(manager).words.items():
        if not name.startswith("--") or not word.has_meaning:
            continue
        values: tuple[str, ...] = tuple(value for value in word.features if value)
        if word.setting is not None and word.takes_value:
            key = word.setting.key
            if len(key) == 1 and key[0] in kinds:
                values = (*(each.name for each in manager.offers(kinds[key[0]])), "auto", "none")
            elif key in (("plugins",), ("without",)):
                values = plugins
            elif key == ("model",):
                values = ("demo", *(f"{PREFIX}{shape}" for shape in SHAPES))
            else:
                values = tuple(_literals(word.setting.annotation))
        flags[name] = values
    return flags


def _literals(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    else:
        for part in get_args(annotation):
            yield from _literals(part)


def _help(place: str) -> str:
    module, _, function = place.partition(":")
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        getattr(import_module(module), function)(["--help"])
    return text.getvalue()


def _take(parser: argparse.ArgumentParser, command: Command) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                command.words[choice.dest] = choice.help or ""
            for inner in action.choices.values():
                _take(inner, command)
        elif not action.option_strings and action.choices:
            command.words |= {str(choice): "" for choice in action.choices}
        for flag in action.option_strings:
            if flag.startswith("--"):
                command.flags[flag] = tuple(map(str, action.choices or ()))


# --- scripts ------------------------------------------------------------------------------------------------------------


def bash(found: Mapping[str, Command]) -> str:
    cases = "".join(
        f"    {name}) words='{' '.join(command.words)}'; flags='{' '.join(command.flags)}' ;;\n"
        for name, command in found.items()
    )
    values = {flag: each for command in found.values() for flag, each in command.flags.items() if each}
    of_flags = "".join(f"    {flag}) values='{' '.join(each)}' ;;\n" for flag, each in values.items())
    return f"""# dovetail: completion for bash
_dovetail() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words='' flags='' values=''
  # bash cuts words at colons and equals signs
  [[ $before == '=' ]] && before="${{COMP_WORDS[COMP_CWORD-2]}}"
  if [[ $current == '=' ]]; then before="${{COMP_WORDS[COMP_CWORD-1]}}"; current=''; fi
  if (( COMP_CWORD == 1 )); then
    COMPREPLY=($(compgen -W '{" ".join(found)} --help --version' -- "$current"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}  esac
  case "$before" in
{of_flags}    {"|".join(_FILES)}|-f|-i|-o) COMPREPLY=($(compgen -f -- "$current")); return ;;
  esac
  if [[ -n $values ]]; then
    COMPREPLY=($(compgen -W "$values" -- "$current"))
    [[ $before == --model ]] && COMPREPLY+=($(compgen -f -- "$current"))
  elif [[ $current == -* ]]; then
    COMPREPLY=($(compgen -W "$flags" -- "$current"))
  elif [[ -n $words ]] && (( COMP_CWORD == 2 )); then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  else
    COMPREPLY=($(compgen -f -- "$current"))
  fi
}}
complete -o filenames -F _dovetail dovetail
"""


def zsh(found: Mapping[str, Command]) -> str:
    return "autoload -U +X bashcompinit && bashcompinit\n" + bash(found).replace("for bash", "for zsh", 1)


def fish(found: Mapping[str, Command]) -> str:
    lines = ["# dovetail: completion for fish", "complete -c dovetail -f"]
    for name, command in found.items():
        lines.append(f"complete -c dovetail -n __fish_use_subcommand -a {name} -d {_quoted(command.summary)}")
    for name, command in found.items():
        here = f"complete -c dovetail -n '__fish_seen_subcommand_from {name}'"
        lines += [f"{here} -a {word} -d {_quoted(summary)}" for word, summary in command.words.items()]
        for flag, values in command.flags.items():
            taken = f" -x -a {_quoted(' '.join(values))}" if values else " -r -F" if flag in _FILES else ""
            if flag == "--model":
                taken = taken.replace(" -x ", " -r -F ")
            lines.append(f"{here} -l {flag[2:]}{taken}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
