"""Requests as they come over the wire: OpenAI's fields, then those that vLLM and FastDeploy added.

Types are checked here, strictly (a number in quotes is no number); ranges are checked by ``SamplingParams``. A field that
nobody knows is ignored, as OpenAI-compatible servers do; a field that asks for something this server cannot do is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("wrong", message)


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 4.0 is 4."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _stop(value: Any) -> list[str] | None:
    """An empty string is a client's field that was left empty; an empty one among others is a mistake."""
    if value is None or value == "":
        return None
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(each, str) for each in strings):
        raise _wrong("must be a string or a list of strings")
    return strings


def _token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


def _prompt(value: Any) -> list[str] | list[list[int]]:
    """One prompt becomes a list of one."""
    if isinstance(value, str):
        return [value]
    if _token_ids(value):
        return [value]
    if value == []:
        raise _wrong("must not be empty")
    if isinstance(value, list) and (all(isinstance(each, str) for each in value) or all(map(_token_ids, value))):
        return value
    raise _wrong("must be a string, a list of strings, a list of token ids, or a list of lists of token ids")


def _content(value: Any) -> str | None:
    """Text parts are joined by line ends."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _wrong("must be a string or a list of parts")
    texts = []
    for number, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise _wrong(f"part {number} must be an object with a type")
        if kind not in ("text", "refusal"):  # a refusal's words are under its own name
            raise _wrong(f"part {number} is of type '{kind[:40]}': this model takes text only")
        if not isinstance(part.get(kind), str):
            raise _wrong(f"part {number} needs its {kind} as a string")
        texts.append(part[kind])
    return "\n".join(texts)


def _arguments(text: str) -> str:
    """JSON, as text: what the model wrote."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _wrong("must be a JSON object, as text")
    return text


def _tool_choice(value: Any) -> Any:
    """One of three words, a function by its name, or some of the functions."""
    if isinstance(value, dict):
        with suppress(ValidationError):
            if value.get("type") == "allowed_tools":
                return AllowedTools.model_validate(value.get("allowed_tools"))
            return NamedTool.model_validate(value).function
    elif value in (None, "none", "auto", "required"):
        return value
    raise _wrong(
        'must be "none", "auto", "required", {"type": "function", "function": {"name": ...}} or '
        '{"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [{"type": "function", ...}]}}'
    )


def _banned_ids(value: Any) -> list[list[int]] | None:
    """Each a token, or several that may not follow each other."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(each) is int or _token_ids(each) for each in value):
        raise _wrong("must be a list of token ids, or of lists of them")
    return [[each] if type(each) is int else each for each in value]


Whole = Annotated[int, BeforeValidator(_whole)]
_ROLES = {"developer": "system", "function": "tool"}  # what templates call them
BannedIds = Annotated[list[list[int]] | None, BeforeValidator(_banned_ids)]
Stop = Annotated[list[str] | None, BeforeValidator(_stop)]
Prompt = Annotated[Any, BeforeValidator(_prompt)]
Content = Annotated[str | None, BeforeValidator(_content)]


class Wire(BaseModel):
    """What comes in as JSON: strict about types, lenient about fields nobody knows."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class StreamOptions(Wire):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class CalledFunction(Wire):
    name: str = Field(min_length=1)
    arguments: Annotated[str, AfterValidator(_arguments)] = "{}"


class CalledTool(Wire):
    """A call that the model made earlier in the conversation."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """Templates write arguments as JSON themselves."""
        arguments = json.loads(self.function.arguments or "{}")
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


class Function(Wire):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class OfferedTool(Wire):
    type: Literal["function"]
    function: Function


class NamedFunction(Wire):
    name: str


class NamedTool(Wire):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Wire):
    """The model is told of all tools, and may call these."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1)

    @property
    def names(self) -> list[str]:
        return [tool.function.name for tool in self.tools]


class Message(Wire):
    """A call and its result may have their older names: ``function_call``, and the role "function"."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    name: str | None = None
    tool_calls: list[CalledTool] | None = None
    function_call: CalledFunction | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    def for_template(self) -> dict[str, Any]:
        """ "developer" is OpenAI's newer word for "system", which is what templates know."""
        known: dict[str, Any] = {"role": _ROLES.get(self.role, self.role), "content": self.content or ""}
        if self.name is not None:
            known["name"] = self.name
        calls = self.tool_calls or [CalledTool(function=call) for call in (self.function_call,) if call is not None]
        if calls:
            known["tool_calls"] = [call.for_template() for call in calls]
        if self.tool_call_id is not None:
            known["tool_call_id"] = self.tool_call_id
        if self.reasoning_content is not None:
            known["reasoning_content"] = self.reasoning_content
        return known


class GenerationBody(Wire):
    """What both kinds of completion take. None means: not given."""

    unsupported: ClassVar[frozenset[str]] = frozenset(
        {
            "allowed_token_ids",
            "logits_processors",
            "logits_processors_args",
            "truncate_prompt_tokens",
            "use_beam_search",
        }
    )

    model: str | None = None
    n: Whole | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Whole | None = None
    stop: Stop = None
    logit_bias: dict[str, float] | None = None
    max_tokens: Whole | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    top_k: Whole | None = None
    min_p: float | None = None
    min_tokens: Whole | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    priority: Whole | None = Field(None, ge=-(2**31), lt=2**31)
    cache_salt: str | None = Field(None, max_length=256)
    request_id: str | None = Field(None, pattern=r"^[!-~]{1,128}$")
    response_format: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    structural_tag: Any = None
    structured_outputs: dict[str, Any] | None = None
    prompt_token_ids: list[int] | None = Field(None, min_length=1)
    return_token_ids: bool | None = None
    max_streaming_response_tokens: Whole | None = Field(None, ge=1)
    prompt_logprobs: Whole | None = None
    bad_words: list[str] | None = Field(None, max_length=1024)
    bad_words_token_ids: BannedIds = None

    def demands(self) -> Iterator[str]:
        """Names of fields that ask for what this server cannot do."""
        extra = self.model_extra or {}
        yield from sorted(name for name in self.unsupported if extra.get(name))

    def unknown(self) -> list[str]:
        """Names of fields that are ignored."""
        return sorted(set(self.model_extra or ()) - self.unsupported)


class ChatBody(GenerationBody):
    """``POST /v1/chat/completions``."""

    unsupported: ClassVar[frozenset[str]] = GenerationBody.unsupported | {
        "audio",
        "function_call",
        "functions",
        "prediction",
        "reasoning_max_tokens",
        "response_max_tokens",
        "web_search_options",
    }

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Whole | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[OfferedTool] | None = Field(None, max_length=128)
    tool_choice: Annotated[Any, BeforeValidator(_tool_choice)] = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    reasoning_effort: str | None = None

    def demands(self) -> Iterator[str]:
        yield from super().demands()
        modalities = (self.model_extra or {}).get("modalities")
        if modalities not in (None, [], ["text"]):
            yield "modalities"


class CompletionBody(GenerationBody):
    """``POST /v1/completions``. ``prompt`` is always a list after validation."""

    prompt: Prompt
    logprobs: Whole | None = None
    echo: bool | None = None
    best_of: Whole | None = None
    suffix: str | None = None
