"""From token events to text deltas: detokenizing as tokens come, and stop strings.

Text is the tokens' bytes read as UTF-8, so the work of a token does not grow with what came before. A continuation goes on
where its prompt ended: its first token keeps the space that decoding it as a whole text of its own would drop.
"""

from __future__ import annotations

import codecs
from functools import lru_cache

from core.interfaces.frontend import TextDelta, TokenInfo, Tokenizer, TopToken
from core.interfaces.request import FinishReason, SamplingParams, TokenEvent, TokenLogprobs


class _StopStrings:
    """Knuth, Morris and Pratt's automaton for each string: looks at every character once, remembers none."""

    def __init__(self, strings: tuple[str, ...]) -> None:
        self._strings = strings
        self._fallbacks = [_fallbacks(string) for string in strings]
        self._matched = [0] * len(strings)

    @property
    def pending(self) -> int:
        """How many of the last characters could be the beginning of a stop string."""
        return max(self._matched, default=0)

    def advance(self, character: str) -> str | None:
        """The stop string that this character completes; of several the longest."""
        complete = None
        for which, (string, fallbacks) in enumerate(zip(self._strings, self._fallbacks, strict=True)):
            matched = self._matched[which]
            while matched and string[matched] != character:
                matched = fallbacks[matched - 1]
            if string[matched] == character:
                matched += 1
            if matched == len(string):
                if complete is None or matched > len(complete):
                    complete = string
                matched = fallbacks[matched - 1]
            self._matched[which] = matched
        return complete


@lru_cache(maxsize=256)
def _fallbacks(string: str) -> tuple[int, ...]:
    """For each length, the longest proper prefix of the string's beginning of that length that also ends it."""
    table = [0] * len(string)
    matched = 0
    for at in range(1, len(string)):
        while matched and string[matched] != string[at]:
            matched = table[matched - 1]
        if string[matched] == string[at]:
            matched += 1
        table[at] = matched
    return tuple(table)


class TextAssembler:
    """One continuation's text. ``feed`` every event of its request in order; after the last delta it gives only empty ones.

    A delta whose ``finish_reason`` is "stop" where the event's was None means that a stop string matched: abort the request.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, index: int = 0, num_prompt_tokens: int = 0) -> None:
        self._tokenizer = tokenizer
        self._params = params
        self._index = index
        self._num_prompt_tokens = num_prompt_tokens
        self._skipped = tokenizer.special_ids if params.skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = _StopStrings(params.stop) if params.stop else None
        self._held = ""  # the text that could still turn out to begin a stop string
        self._length = 0  # characters so far, the held ones included
        self._num_tokens = 0
        self._num_cached_tokens = 0
        self._finished = False

    def feed(self, event: TokenEvent) -> TextDelta:
        if self._finished:
            return self._delta("", (), None, None)
        self._num_cached_tokens = event.num_cached_tokens
        infos: list[TokenInfo] = []
        ready = ""
        stopped_by: str | None = None
        count = 0
        for token_id in event.token_ids:
            if event.logprobs is not None:
                infos.append(self._info(token_id, event.logprobs[count]))
            count += 1
            self._num_tokens += 1
            is_stop_token = event.stop_token is not None and count == len(event.token_ids)
            if not is_stop_token and token_id not in self._skipped:
                text, stopped_by = self._take(self._utf8.decode(self._tokenizer.token_bytes(token_id)))
                ready += text
                if stopped_by is not None:
                    break
        finish_reason = event.finish_reason
        if stopped_by is None and finish_reason is not None:
            text, stopped_by = self._take(self._utf8.decode(b"", final=True))
            ready += text
        if stopped_by is not None:
            finish_reason = "stop"
        if finish_reason is not None:
            self._finished = True
            ready += self._held
            self._held = ""
        logprobs = None if event.logprobs is None else tuple(infos)
        stop_reason = stopped_by if stopped_by is not None else event.stop_token
        return self._delta(ready, tuple(event.token_ids[:count]), logprobs, finish_reason, stop_reason, event.error)

    def _take(self, new: str) -> tuple[str, str | None]:
        """(text that can go out, the stop string that has matched)."""
        self._length += len(new)
        if self._stops is None:
            return new, None
        may_stop = self._num_tokens >= self._params.min_tokens
        text = self._held + new
        for at, character in enumerate(new, start=len(self._held) + 1):
            matched = self._stops.advance(character)
            if matched is not None and may_stop:
                self._held = ""
                end = at if self._params.include_stop_str_in_output else at - len(matched)
                return text[:end], matched
        end = len(text) - self._stops.pending
        self._held = text[end:]
        return text[:end], None

    def _info(self, token_id: int, logprobs: TokenLogprobs) -> TokenInfo:
        return token_info(self._tokenizer, token_id, logprobs, self._length)

    def _delta(
        self,
        text: str,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenInfo, ...] | None,
        finish_reason: FinishReason | None,
        stop_reason: str | int | None = None,
        error: str = "",
    ) -> TextDelta:
        return TextDelta(
            index=self._index,
            text=text,
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reason=finish_reason,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._num_tokens,
            num_cached_tokens=self._num_cached_tokens,
            stop_reason=stop_reason,
            error=error,
        )


def token_info(tokenizer: Tokenizer, token_id: int, logprobs: TokenLogprobs, text_offset: int) -> TokenInfo:
    top = tuple(
        TopToken(other, tokenizer.token_text(other), tokenizer.token_bytes(other), logprob)
        for other, logprob in zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)
    )
    return TokenInfo(
        token_id=token_id,
        text=tokenizer.token_text(token_id),
        bytes=tokenizer.token_bytes(token_id),
        logprob=logprobs.logprob,
        rank=logprobs.rank,
        top=top,
        text_offset=text_offset,
    )
