"""Stand-ins: a service that answers without an engine, and a quantizer that is as plain as one can be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import EngineDeadError, RequestError
from core.interfaces.frontend import ChatTemplate, Health, ModelCard, Service, TextDelta, TokenInfo, Tokenizer, TopToken
from core.interfaces.model import Role
from core.interfaces.quantizer import Packed, Quantizer
from core.interfaces.request import EngineStats, FinishReason, SamplingParams


class ByteTokenizer:
    """One token a byte; 256 begins a text, 257 ends it."""

    vocab_size: int = 258
    eos_token_ids: tuple[int, ...] = (257,)
    bos_token_id: int | None = 256
    special_ids: frozenset[int] = frozenset({256, 257})

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [256] * add_special_tokens + list(text.encode())

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        named = {} if skip_special_tokens else {256: b"<s>", 257: b"</s>"}
        return b"".join(named.get(token, b"") if token > 255 else bytes([token]) for token in ids).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        return self.decode([token_id], skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else self.token_text(token_id).encode()


class PlainChatTemplate:
    """``role: content`` a line."""

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **kwargs: Any) -> str:
        if not messages:
            raise RequestError("messages is empty", param="messages")
        turns = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        return turns + ("assistant: " if add_generation_prompt else "")


class FakeService(Service):
    """Answers every prompt with ``reply(prompt)``, one character a delta, until ``max_tokens``.

    For tests to steer by, from any thread: ``hold()`` stops generation until ``go_on()``; ``die(reason)`` is the engine's end.
    To look at: ``asked`` (prompts and parameters in order), ``running``, ``aborted``, ``drained``.
    """

    def __init__(
        self, reply: str | Callable[[str], str] = "a fake answer", *, max_model_len: int = 4096, max_running: int = 1000
    ) -> None:
        self.reply = reply if callable(reply) else lambda prompt: reply
        self.tokenizer: Tokenizer = ByteTokenizer()
        self.chat_template: ChatTemplate | None = PlainChatTemplate()
        self.card = ModelCard(
            name="fake",
            served_names=("fake",),
            max_model_len=max_model_len,
            vocab=self.tokenizer.vocab_size,
            created=1_700_000_000,
        )
        self.max_running = max_running
        self.asked: list[tuple[str, SamplingParams]] = []
        self.running: dict[str, bool] = {}  # request id -> whether it was aborted
        self.aborted: list[str] = []
        self.finished = 0
        self.drained = False
        self.draining = False
        self.reason = ""
        self._held = False
        self._changed: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    # --- steering ---------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Nothing is generated from now on."""
        self._held = True

    def go_on(self) -> None:
        self._held = False
        self._wake()

    def die(self, reason: str) -> None:
        """The engine is gone, also for what is running."""
        self.reason = reason
        self._wake()

    def _wake(self) -> None:
        for event, loop in list(self._changed.items()):
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    async def _until(self, condition: Callable[[], bool]) -> None:
        event = asyncio.Event()
        self._changed[event] = asyncio.get_running_loop()
        try:
            while not condition():
                event.clear()
                if not condition():
                    await event.wait()
        finally:
            del self._changed[event]

    # --- the service ------------------------------------------------------------------------------------------------

    async def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        cache_salt: str = "",
    ) -> AsyncIterator[TextDelta]:
        if self.reason:
            raise EngineDeadError(self.reason)
        if not prompt_token_ids:
            raise RequestError("the prompt is empty", param="prompt")
        if len(prompt_token_ids) >= self.card.max_model_len:
            raise RequestError(
                f"the prompt has {len(prompt_token_ids)} tokens, the context {self.card.max_model_len}",
                param="prompt",
                code="context_length_exceeded",
            )
        if self.draining or len(self.running) >= self.max_running:
            raise RequestError("no more requests are taken", code="queue_full", status=429)
        prompt = self.tokenizer.decode(prompt_token_ids)
        self.asked.append((prompt, params))
        self.running[request_id] = False
        try:
            for index in range(params.n):
                async for delta in self._continuation(index, prompt, len(prompt_token_ids), params, request_id):
                    yield delta
            self.finished += 1
        finally:
            if self.running.pop(request_id):
                self.aborted.append(request_id)
            self._wake()

    async def _continuation(
        self, index: int, prompt: str, num_prompt: int, params: SamplingParams, request_id: str
    ) -> AsyncIterator[TextDelta]:
        text = self.reply(prompt)
        written = ""
        stopped: tuple[FinishReason, str | None] = ("stop", None)
        for number, character in enumerate(text):
            await asyncio.sleep(0)
            await self._until(lambda: not self._held or bool(self.reason) or self.running[request_id])
            if self.reason:
                raise EngineDeadError(self.reason)
            if self.running[request_id]:
                stopped = ("abort", None)
                break
            if params.max_tokens is not None and number == params.max_tokens:
                stopped = ("length", None)
                break
            match = next((stop for stop in params.stop if (written + character).endswith(stop)), None)
            written += character
            if match is not None and number + 1 >= params.min_tokens:
                stopped = ("stop", match)
                break
            token = character.encode()[0]
            yield TextDelta(
                index,
                character,
                (token,),
                self._logprobs(token, character, params, len(written) - 1),
                None,
                num_prompt,
                number + 1,
            )
        reason, stop = stopped
        logprobs = None if params.logprobs is None else ()
        yield TextDelta(index, "", (), logprobs, reason, num_prompt, len(written), stop_reason=stop)

    def _logprobs(self, token: int, text: str, params: SamplingParams, offset: int) -> tuple[TokenInfo, ...] | None:
        if params.logprobs is None:
            return None
        likeliest = tuple(TopToken(token + n, chr(token + n), bytes([token + n]), -0.5 - n) for n in range(params.logprobs))
        return (TokenInfo(token, text, text.encode(), -0.5, 0, likeliest, offset),)

    async def abort(self, request_id: str) -> bool:
        if request_id not in self.running:
            return False
        self.running[request_id] = True
        self._wake()
        return True

    def health(self) -> Health:
        return Health(alive=not self.reason, ready=not self.reason and not self.draining, detail=self.reason)

    async def stats(self) -> EngineStats:
        if self.reason:
            raise EngineDeadError(self.reason)
        return EngineStats(
            num_running=len(self.running), pages_total=64, pages_free=64, requests_finished={"stop": self.finished}
        )

    async def drain(self, timeout: float | None = None) -> None:
        self.draining = True
        try:
            await asyncio.wait_for(self._until(lambda: not self.running), timeout)
        except TimeoutError:
            for request_id in list(self.running):
                await self.abort(request_id)
        self.drained = True

    async def wait_dead(self) -> str:
        await self._until(lambda: bool(self.reason))
        return self.reason


class RowInt8(Quantizer):
    """Eight bits, one scale a row, rounded to nearest: as plain as can be, with a layout that nobody has a kernel for."""

    name = "fake_int8"
    layout = "fake_int8_row"

    def __init__(self, roles: frozenset[Role] = frozenset({"qkv", "o", "gate_up", "down"})) -> None:
        self.roles = roles

    def pack(self, weight: NDArray[np.float32]) -> Packed:
        largest = np.abs(weight).max(axis=1, keepdims=True)
        scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
        scale = np.maximum(scale, np.finfo(np.float32).tiny)
        codes = np.rint(weight / scale).astype(np.int8)
        return Packed((weight.shape[0], weight.shape[1]), {"codes": np.ascontiguousarray(codes), "scale": scale[:, 0].copy()})

    def unpack(self, packed: Packed) -> NDArray[np.float32]:
        values: NDArray[np.float32] = packed.arrays["codes"].astype(np.float32) * packed.arrays["scale"][:, None]
        return values

    def columns(self, packed: Packed, first: int, last: int) -> Packed:
        codes = np.ascontiguousarray(packed.arrays["codes"][:, first:last])
        return Packed((packed.shape[0], last - first), {"codes": codes, "scale": packed.arrays["scale"]})

    def bits_per_weight(self, in_features: int) -> float:
        return 8 + 32 / in_features


class BlockInt8(RowInt8):
    """The same with one scale for 24 rows."""

    name = "fake_block_int8"
    layout = "fake_int8_block"
    rows_together = 24

    def pack(self, weight: NDArray[np.float32]) -> Packed:
        rows, columns = weight.shape
        filled = np.pad(weight, ((0, -rows % self.rows_together), (0, 0)))
        packed = super().pack(filled.reshape(-1, self.rows_together * columns))
        codes = packed.arrays["codes"].reshape(-1, columns)[:rows].copy()
        return Packed((rows, columns), {"codes": codes, "scale": packed.arrays["scale"]})

    def unpack(self, packed: Packed) -> NDArray[np.float32]:
        scale = np.repeat(packed.arrays["scale"], self.rows_together)[: packed.shape[0], None]
        values: NDArray[np.float32] = packed.arrays["codes"].astype(np.float32) * scale
        return values

    def bits_per_weight(self, in_features: int) -> float:
        return 8 + 32 / in_features / self.rows_together

    def rows(self, packed: Packed, first: int, last: int) -> Packed:
        scale = packed.arrays["scale"][first // self.rows_together : -(-last // self.rows_together)]
        return Packed((last - first, packed.shape[1]), {"codes": packed.arrays["codes"][first:last], "scale": scale})
