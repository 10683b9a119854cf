"""llama.cpp as a contestant, through llama-cpp-python's plain bindings: a batch of tokens a step, the likeliest one taken."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from importlib.metadata import version
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.bench.contestant import Contestant, Generated, Prompt

STEP = 2048  # tokens a call takes at most


class LlamaCpp(Contestant):
    """
    :param stored: "Q8_0" and the like, as llama.cpp's own quantizer makes them of the file; empty: as the file has it.
    :param sequences: most prompts at once, each of at most ``longest`` tokens, those generated included.
    """

    def __init__(self, file: str, stored: str, threads: int, sequences: int, longest: int) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)  # kept: the library holds the pointer
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        threads = threads or os.cpu_count() or 1
        if stored:
            file = self._quantized(file, stored, threads)
        self._model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {file}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = sequences * (-(-longest // 256) * 256)
        params.n_seq_max = sequences
        params.n_batch = STEP
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context of {params.n_ctx} tokens")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(STEP, 0, 1)
        self.versions = {"llama-cpp-python": version("llama-cpp-python"), "weights": stored or "as given"}

    def _quantized(self, file: str, stored: str, threads: int) -> str:
        made = f"{file}.{stored}"
        params = self._lib.llama_model_quantize_default_params()
        params.ftype = getattr(self._lib, f"LLAMA_FTYPE_MOSTLY_{stored}")
        params.nthread = threads
        if self._lib.llama_model_quantize(file.encode(), made.encode(), ctypes.byref(params)) != 0:
            raise RuntimeError(f"llama.cpp cannot turn {file} into {stored}")
        return made

    def _compute(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        """``rows``: token, position, sequence, whether its logits are wanted."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = wanted
        if self._lib.llama_decode(self._context, batch) != 0:
            raise RuntimeError(f"llama.cpp did not compute a step of {len(rows)} tokens")

    def _logits(self, index: int) -> NDArray[np.float32]:
        found: NDArray[np.float32] = np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, index), (self._vocab,))
        return found

    def _read(self, prompts: Sequence[Prompt]) -> list[NDArray[np.float32]]:
        """The logits after each prompt: as many prompts a step as there is room for."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        found = []
        rows: list[tuple[int, int, int, bool]] = []
        for sequence, prompt in enumerate(prompts):
            rows += [(token, at, sequence, at == len(prompt) - 1) for at, token in enumerate(prompt)]
            following = len(prompts[sequence + 1]) if sequence + 1 < len(prompts) else STEP
            if len(rows) + following > STEP:
                self._compute(rows)
                found += [self._logits(index).copy() for index, row in enumerate(rows) if row[3]]
                rows = []
        return found

    def generate(self, prompts: Sequence[Prompt], length: int) -> Generated:
        began = perf_counter()
        tokens = [[int(logits.argmax())] for logits in self._read(prompts)]
        first = perf_counter()
        for step in range(length - 1):
            self._compute([(row[-1], len(prompts[at]) + step, at, True) for at, row in enumerate(tokens)])
            for at, row in enumerate(tokens):
                row.append(int(self._logits(at).argmax()))
        last = perf_counter()
        return Generated(first - began, last - first, len(prompts) * (length - 1), tokens)

    def next_token(self, prompts: Sequence[Prompt], top: int) -> list[dict[int, float]]:
        likeliest = []
        for logits in self._read(prompts):
            shifted = logits.astype(np.float64) - logits.max()
            logprobs = shifted - np.log(np.exp(shifted).sum())
            ids = np.argsort(-logprobs, kind="stable")[:top]
            likeliest.append(dict(zip(ids.tolist(), logprobs[ids].tolist(), strict=True)))
        return likeliest
