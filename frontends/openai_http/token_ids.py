"""``return_token_ids``: an answer's tokens beside its text, and the prompt's, under the names that vLLM and FastDeploy use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.interfaces.frontend import TextDelta
from frontends.openai_http.generation import Form, Gathered


class WithTokenIds:
    """Another form, and the ids. They stand in the message or delta where the form has one, else in the choice."""

    def __init__(self, form: Form, prompts: Sequence[list[int]], n: int) -> None:
        self.object, self.chunk_object = form.object, form.chunk_object
        self._form = form
        self._prompts = prompts
        self._n = n
        self._untold: dict[int, list[int]] = {}  # ids whose text the form still holds, by choice

    def opening(self, choice: int) -> dict[str, Any]:
        entry = self._form.opening(choice) or {"index": choice, "text": "", "logprobs": None, "finish_reason": None}
        entry.get("delta", entry)["prompt_token_ids"] = self._prompts[choice // self._n]
        return entry

    def piece(self, choice: int, delta: TextDelta) -> dict[str, Any] | None:
        untold = self._untold.setdefault(choice, [])
        untold += delta.token_ids
        entry = self._form.piece(choice, delta) if delta.text or delta.logprobs else None
        return None if entry is None else self._with(entry, self._untold.pop(choice))

    def closing(self, choice: int, delta: TextDelta) -> dict[str, Any]:
        return self._with(self._form.closing(choice, delta), self._untold.pop(choice, []))

    def whole(self, choice: int, gathered: Gathered) -> dict[str, Any]:
        entry = self._form.whole(choice, gathered)
        entry.get("message", entry)["prompt_token_ids"] = self._prompts[choice // self._n]
        return self._with(entry, gathered.ids)

    def _with(self, entry: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        told = entry.get("delta") if "delta" in entry else entry.get("message", entry)
        assert told is not None
        told["completion_token_ids"] = ids
        entry["token_ids"] = ids
        return entry
