"""Writes the generated pages of docs/, or checks that they are current: python docs/build.py [--check | --write].

``docs/plugins/hooks.md`` is what ``core/hookspecs.py`` and ``core/offers.py`` say, in their order and in their words;
``docs/plugins/facts.md`` lists the core's facts, and the rules of the core and of the plugins that come with it. The modules
beside this one write a page each: parameters, FastDeploy's flags, what goes together, and metrics.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import page_compatibility
import page_fastdeploy
import page_metrics
import page_parameters

from core import hookspecs, offers
from core.compose.core_rules import CORE_RULES
from core.compose.facts import CORE_FACTS
from core.interfaces.rules import FactRef, Rule
from core.offers import Offer
from core.plugin_manager import PluginManager

ROOT = Path(__file__).parents[1]
HOOKS = ROOT / "docs" / "plugins" / "hooks.md"
FACTS = ROOT / "docs" / "plugins" / "facts.md"
PARAMETERS = ROOT / "docs" / "parameters.md"
FROM_FASTDEPLOY = ROOT / "docs" / "from-fastdeploy.md"
COMPATIBILITY = ROOT / "docs" / "compatibility.md"
METRICS = ROOT / "docs" / "operating" / "metrics.md"

INTRODUCTION = """\
<!-- Generated from core/hookspecs.py and core/offers.py by docs/build.py: change those, then run `nox -s docs -- --write`. -->

# Hooks

{manual}

In this order the core calls them:

{index}

Every hook returns an iterable of *offers*, frozen records of `core.offers`. All offers have these fields:

{fields}

`create` receives a `Context`, whose fields are plain data:

{context}
"""

FACTS_PAGE = """\
<!-- Generated from core/compose and the plugins' offers by docs/build.py: change those, then run `nox -s docs -- --write`. -->

# Facts and rules

## Facts

What a rule can be about, besides `settings.<plugin>.<setting>` for the settings of every plugin, and the facts that a plugin
declares itself. A fact that is not known is None.

{facts}

## Rules

What cannot be composed, and what to do about it. `--explain` judges a configuration by them without launching it.

{rules}
"""

RULE = """\
### {id}

Of {owner}; {severity}. Violated when {when}.

> {reason}

{remedies}
"""

SECTION = """\
## {name}

```python
{signature}
```

{text}

{offer} {about}

{fields}
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail when a page is not current (the default)")
    parser.add_argument("--write", action="store_true", help="write the pages")
    given = parser.parse_args(argv)
    current = pages()
    stale = [path for path, text in current.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        name = path.relative_to(ROOT)
        if given.write:
            path.write_text(current[path], encoding="utf-8")
            sys.stdout.write(f"{name}: written\n")
        else:
            sys.stderr.write(f"{name} is not what the code says: run `nox -s docs -- --write`\n")
    return 1 if stale and not given.write else 0


def pages() -> dict[Path, str]:
    """Every generated page and what it ought to say."""
    manager = PluginManager.discover()
    theirs = importlib.import_module("fastdeploy_compat.theirs")
    return {
        HOOKS: hooks_page(),
        FACTS: facts_page(),
        PARAMETERS: page_parameters.page(manager),
        FROM_FASTDEPLOY: page_fastdeploy.page(manager, theirs.FLAGS, theirs.VARIABLES),
        COMPATIBILITY: page_compatibility.page(manager),
        METRICS: page_metrics.page(),
    }


def facts_page() -> str:
    rows = [f"| `{fact.name}` | `{fact.type.__name__}` | {fact.doc} |" for fact in CORE_FACTS]
    facts = "\n".join(["| fact | type | |", "|---|---|---|", *rows])
    rules = [rule_section("the core", rule) for rule in CORE_RULES]
    for plugin in PluginManager.discover().plugins:
        if plugin.provenance.startswith("dovetail-serve "):
            offered = {rule.id: rule for offer in plugin.offers for rule in (*offer.rules, *offer.idle_rules)}
            rules += [rule_section(f"plugin `{plugin.name}`", rule) for rule in offered.values()]
    return FACTS_PAGE.format(facts=facts, rules="\n".join(rules))


def rule_section(owner: str, rule: Rule) -> str:
    remedies = [f"* {remedy.text}" for remedy in rule.remedies]
    when = " and ".join(f"`{each.fact} {each.op} {operand(each.value)}`" for each in rule.when)
    severity = {"error": "refuses", "warning": "warns"}[rule.severity]
    return RULE.format(id=rule.id, owner=owner, severity=severity, when=when, reason=rule.reason, remedies="\n".join(remedies))


def operand(value: Any) -> str:
    return value.name if isinstance(value, FactRef) else repr(value)


def hooks_page() -> str:
    names = hook_names()
    introduction = INTRODUCTION.format(
        manual=markdown(inspect.getdoc(hookspecs) or ""),
        index="\n".join(f"{number}. [`{name}`](#{name})" for number, name in enumerate(names, 1)),
        fields=table(Offer),
        context=table(offers.Context),
    )
    return "\n".join([introduction, *(section(name) for name in names)])


def hook_names() -> list[str]:
    """The functions marked with @hookspec, in the order of the file, which is the order in which they are called."""
    marker = f"{hookspecs.PROJECT}_spec"
    return [name for name, value in vars(hookspecs).items() if hasattr(value, marker)]


def section(name: str) -> str:
    hook = getattr(hookspecs, name)
    offer = getattr(offers, re.findall(r"\w+Offer", signature(name))[-1])
    own = inspect.getdoc(offer) or ""
    about = "" if own.startswith(f"{offer.__name__}(") else markdown(own)
    return SECTION.format(
        name=name,
        signature=signature(name),
        text=markdown(inspect.getdoc(hook) or ""),
        offer=f"`{offer.__name__}` is the offer of kind `{offer.kind}`; its own fields are below.",
        about=about,
        fields=table(offer, without=Offer),
    )


def signature(name: str) -> str:
    """`def register_samplers() -> Iterable[SamplerOffer]`, as the source has it."""
    return f"def {name}{inspect.signature(getattr(hookspecs, name))}".replace("'", "")


def table(record: type, without: type | None = None) -> str:
    hidden = {field.name for field in dataclasses.fields(without)} if without else set()
    notes = comments(record)
    lines = ["| field | type | default | |", "|---|---|---|---|"]
    for field in dataclasses.fields(record):
        if field.name not in hidden:
            kind = str(field.type).replace("|", "\\|")
            lines.append(f"| `{field.name}` | `{kind}` | {default(field)} | {notes.get(field.name, '')} |")
    return "\n".join(lines)


def default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "`{}`" if field.default_factory is dict else "nothing"
    if field.default is dataclasses.MISSING:
        return "required"
    return "nothing" if callable(field.default) else f"`{field.default!r}`"


def comments(record: type) -> dict[str, str]:
    """Field name -> the comment behind it in the source."""
    source = inspect.getsource(record)
    lines = source.splitlines()
    found = {}
    for node in ast.parse(textwrap.dedent(source)).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            _, mark, comment = lines[(node.end_lineno or 1) - 1].partition("  # ")
            if mark and not comment.startswith("noqa"):
                found[node.target.id] = markdown(comment)
    return found


def markdown(docstring: str) -> str:
    """A docstring as Markdown: literal blocks after ``::`` are fenced, double backticks become single ones."""
    out: list[str] = []
    block: list[str] | None = None
    for line in [*docstring.splitlines(), "end"]:
        if block is not None and (line.startswith("    ") or not line.strip()):
            block.append(line[4:])
            continue
        if block is not None:
            code = "\n".join(block).strip("\n")
            out += ["```toml" if code.startswith("[") else "```python", code, "```", ""]
            block = None
        if line.rstrip().endswith("::"):
            lead = line.rstrip()[:-2].rstrip()
            out += [f"{lead}:", ""] if lead else []
            block = []
        else:
            out.append(line)
    return re.sub(r"(?<!`)``(?!`)", "`", "\n".join(out[:-1])).strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
