"""``LLM``: many prompts in, all their continuations out, in the caller's own process."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, cast

from core.errors import RequestError
from core.interfaces.frontend import Pooling, Tokenizer
from core.interfaces.request import EngineStats, SamplingParams
from core.launch import LocalService, of_prompt, open_local
from frontends.offline.outputs import EmbeddingOutput, RequestOutput, completion_output
from frontends.offline.prompts import Message, Prompt, default_params, needed_template, one_or_many, read_prompt


class LLM:
    """A model, loaded into this process.

    ``model`` and every keyword are the server's settings, underscores for dashes (``python -m core.serve --help`` lists them);
    feature flags that bring their plugin are among them::

        llm = LLM("demo", dtype="float32", max_num_seqs=16)
        llm = LLM("random:tiny", block_size=16, num_gpu_blocks_override=20, max_num_batched_tokens=64)

    A table of a plugin's own settings is a mapping: ``LLM("demo", sampler_standard={...})``.

    Use it as a context manager, or call ``shutdown``, to give back its memory at a known moment.

    :raises core.errors.UserError: when the settings are wrong, with every problem at once and what to do about each.
    """

    def __init__(self, model: str = "demo", **settings: Any) -> None:
        self._service: LocalService | None = None  # first: __del__ runs also when the rest fails
        from core.compose import compose

        self._numbers = itertools.count()
        self._service = open_local(compose([], overrides={"model": model, **settings}))

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = False,
        *,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Continue one prompt or many; the outputs are in the prompts' order.

        A prompt is a string, ``{"prompt": "..."}``, ``{"prompt_token_ids": [...]}`` or a plain list of token ids. ``params`` is
        for all prompts, or a list with one for each; without it the checkpoint's own defaults hold::

            llm.generate("Once upon a time", SamplingParams(max_tokens=64))
            llm.generate([{"prompt_token_ids": [1, 15, 7]}, "Hello"], [SamplingParams(seed=1), SamplingParams(seed=2)])

        ``use_tqdm`` shows a progress bar; ``sampling_params`` is another name of ``params``. Ctrl-C ends the call and leaves
        the LLM usable.

        :raises core.errors.RequestError: naming the first prompt that cannot be served, before any has run; a grammar that
            cannot be used is found later, and ends the call.
        """
        service = self._open()
        each = one_or_many(prompts)
        params = sampling_params if params is None else params
        texts: list[str | None] = []
        ids: list[list[int]] = []
        for number, prompt in enumerate(each):
            text, token_ids = read_prompt(number, prompt, service.tokenizer)
            texts.append(text)
            ids.append(token_ids)
        return self._run(service, texts, ids, self._params_for(service, params, len(each)), use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = False,
        *,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or a list of conversations, by the checkpoint's chat template::

            [output] = llm.chat([{"role": "user", "content": "What is the capital of France?"}], SamplingParams(max_tokens=64))
            print(output.outputs[0].text)

        :raises core.errors.RequestError: when the model has no chat template, or it does not take the messages.
        """
        service = self._open()
        template = needed_template(service.chat_template, service.card)
        single = not messages or isinstance(messages[0], Mapping)
        conversations = cast(Sequence[Sequence[Message]], [messages] if single else messages)
        params = sampling_params if params is None else params
        texts: list[str | None] = []
        ids: list[list[int]] = []
        for number, conversation in enumerate(conversations):
            try:
                text = template.render(
                    conversation, add_generation_prompt=add_generation_prompt, **(chat_template_kwargs or {})
                )
            except RequestError as error:
                raise of_prompt(number, error) from None
            texts.append(text)
            ids.append(service.tokenizer.encode(text, add_special_tokens=False))
        return self._run(service, texts, ids, self._params_for(service, params, len(texts)), use_tqdm)

    def embed(self, prompts: Prompt | Sequence[Prompt], *, pooling: Pooling = "last") -> list[EmbeddingOutput]:
        """What the model makes of one prompt or many, as vectors of length 1, in the prompts' order.

        ``pooling``: the last token's hidden state behind the final norm, or the "mean" over all of them::

            sea, snow = llm.embed(["The sea is", "Snow is"])
            alike = sum(a * b for a, b in zip(sea.embedding, snow.embedding))

        :raises core.errors.RequestError: naming the first prompt that cannot be served, or what this engine cannot do.
        """
        service = self._open()
        read = [read_prompt(number, prompt, service.tokenizer) for number, prompt in enumerate(one_or_many(prompts))]
        vectors = service.embed([ids for _, ids in read], pooling=pooling)
        return [
            EmbeddingOutput(str(next(self._numbers)), text, ids, vector)
            for (text, ids), vector in zip(read, vectors, strict=True)
        ]

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer: ``encode(text) -> ids`` and ``decode(ids) -> text``."""
        return self._open().tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What holds for prompts that come without params: the checkpoint's own defaults."""
        return default_params(self._open().card)

    def stats(self) -> EngineStats:
        """The engine's counters: tokens, pages, preemptions."""
        return self._open().stats()

    def shutdown(self) -> None:
        """Give back the model's memory. The LLM cannot be used afterwards; calling it twice is harmless."""
        service, self._service = self._service, None
        if service is not None:
            service.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.shutdown()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be half gone
            self.shutdown()

    def _open(self) -> LocalService:
        if self._service is None:
            raise RuntimeError("this LLM has been shut down: make a new one")
        return self._service

    def _params_for(
        self, service: LocalService, params: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if params is None:
            return [default_params(service.card)] * count
        if isinstance(params, SamplingParams):
            return [params] * count
        if len(params) != count:
            raise RequestError(f"{count} prompts, but {len(params)} params: give one for all, or one for each", param="params")
        return list(params)

    def _run(
        self,
        service: LocalService,
        texts: list[str | None],
        ids: list[list[int]],
        params: list[SamplingParams],
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        with _progress(len(ids), use_tqdm) as on_finished:
            results = service.generate(list(zip(ids, params, strict=True)), on_finished)
        return [
            RequestOutput(
                request_id=str(next(self._numbers)),
                prompt=text,
                prompt_token_ids=token_ids,
                outputs=[completion_output(continuation) for continuation in continuations],
                num_cached_tokens=max(continuation.num_cached_tokens for continuation in continuations),
            )
            for text, token_ids, continuations in zip(texts, ids, results, strict=True)
        ]


@contextlib.contextmanager
def _progress(total: int, shown: bool) -> Iterator[Callable[[int], None] | None]:
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:  # what is printed of the outputs stays apart
        bar = progress.add_task("prompts", total=total)
        yield lambda _number: progress.advance(bar)
