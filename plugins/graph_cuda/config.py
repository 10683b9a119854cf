"""FastDeploy's ``--graph-optimization-config``: which of its keys mean something here, and why the others do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return type(value) is int and value >= 1


def _are_sizes(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(_is_number(each) for each in value)


_SWITCH = (_is_switch, "true or false")
_NUMBER = (_is_number, "a whole number from 1 on")
_SIZES = (_are_sizes, "a list of one or more whole numbers from 1 on")
_ANY: tuple[Callable[[Any], bool], str] = (lambda value: True, "anything")

CHOOSES = "use_cudagraph"
"""Whether graphs are wanted at all; the plugin is chosen by it, or not."""

MEANS: dict[str, tuple[str, tuple[Callable[[Any], bool], str]]] = {
    "graph_opt_level": ("graph_opt_level", (lambda value: type(value) is int and 0 <= value <= 2, "0, 1 or 2")),
    "cudagraph_capture_sizes": ("capture_sizes", _SIZES),
    "cudagraph_capture_sizes_prefill": ("prefill_sequences", _SIZES),
    "max_capture_shape_prefill": ("prefill_tokens", _NUMBER),
    "cudagraph_num_of_warmups": ("warmups", _NUMBER),
    "use_unique_memory_pool": ("shared_pool", _SWITCH),
}
"""Key -> the setting of this plugin that it is, and what its value has to be."""

WITHOUT_EFFECT = {
    "full_cuda_graph": "a step is always recorded whole, attention included, and never in pieces",
    "cudagraph_splitting_ops": "a step is always recorded whole, attention included, and never in pieces",
    "cudagraph_copy_inputs": "a step's inputs are always copied to where the recording reads them",
    "cudagraph_only_prefill": "decode steps are always recorded, steps of prompts in full scope",
    "draft_model_use_cudagraph": "there is no draft model",
    "sot_warmup_sizes": "no Python is traced",
}
"""Key -> why it says nothing here."""


def mistakes_in(config: Mapping[str, Any]) -> list[str]:
    """Unknown keys and values that cannot be meant; None is a key that was not given."""
    found = []
    known = {CHOOSES: _SWITCH, **{key: check for key, (_, check) in MEANS.items()}, **dict.fromkeys(WITHOUT_EFFECT, _ANY)}
    for key, value in config.items():
        if key not in known:
            near = get_close_matches(key, known, 1)
            found.append(f"there is no key {key!r}{f'; did you mean {near[0]!r}?' if near else ''}")
        elif value is not None and not known[key][0](value):
            found.append(f"{key} is {known[key][1]}, not {value!r}")
    return found


def settings_of(config: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Setting -> (the key that says it, its value)."""
    return {MEANS[key][0]: (key, value) for key, value in config.items() if key in MEANS and value is not None}
