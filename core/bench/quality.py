"""``python -m core.bench.quality``: what packed weights cost in quality, against the model in its own number format.

Both read the same text, every token given and none sampled, side by side and a piece at a time, so that one piece's logits
are all that is held. Reported are each one's perplexity, how far the predictions are apart, and how often both find the same
token likeliest.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.compose import compose
from core.compose.build import checkpoint_formats, fetched, load_model
from core.compose.plan import Plan
from core.errors import ExitCode, UserError
from core.interfaces.compute import SamplingRows, StepBatch
from core.models.decoder import Decoder
from core.models.loading import read_config
from core.text.tokenizer import load_tokenizer

TEXT = Path(__file__).parent / "prose.md"
PAGE = 16  # tokens
PIECE = 128  # tokens whose logits are held at a time


@dataclass(frozen=True)
class Quality:
    """``nll``: mean negative log-likelihood of a token; ``kl``: mean divergence of the measured predictions from the
    reference's; both in nats. ``same_best``: how often both find the same token likeliest. Bytes as the linears say.
    """

    model: str
    tokens: int
    nll: float
    reference_nll: float
    kl: float
    same_best: float
    layer_bytes: int
    head_bytes: int
    formats: tuple[str, ...]

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll)

    @property
    def reference_perplexity(self) -> float:
        return math.exp(self.reference_nll)


class Reader:
    """A decoder that reads one sequence, piece by piece."""

    def __init__(self, plan: Plan, length: int) -> None:
        self.decoder: Decoder = load_model(plan)
        self._pages = -(-length // PAGE)
        self._kv = self.decoder.backend.kv_cache(plan.spec, self._pages, PAGE)

    def read(self, tokens: NDArray[np.int32], first: int) -> NDArray[np.float32]:
        """[tokens, V] logits of what follows each token, the first of which stands at position ``first``."""
        backend = self.decoder.backend
        positions = np.arange(first, first + len(tokens), dtype=np.int32)
        batch = StepBatch(
            token_ids=tokens,
            positions=positions,
            slots=positions.astype(np.int64),
            query_starts=np.array([0, len(tokens)], np.int32),
            context_lens=np.array([first + len(tokens)], np.int32),
            page_table=np.arange(self._pages, dtype=np.int32)[None],
            logit_rows=np.arange(len(tokens), dtype=np.int64),
            num_decodes=0,
            sampling=nothing_sampled(),
        )
        logits: NDArray[np.float32] = backend.to_host(
            self.decoder.forward(backend.upload(batch, self.decoder.spec, self._kv), self._kv)
        )
        return logits


def nothing_sampled() -> SamplingRows:
    none = np.zeros(0)
    return SamplingRows(
        temperature=none.astype(np.float32),
        top_k=none.astype(np.int32),
        top_p=none.astype(np.float32),
        min_p=none.astype(np.float32),
        seeds=none.astype(np.uint64),
        positions=none.astype(np.int64),
        logprobs=none.astype(np.int32),
    )


def measure(plan: Plan, reference: Plan, text: str, most: int) -> Quality:
    """Both plans are of one model. At most ``most`` tokens of the text are read."""
    plan, reference = fetched(plan), fetched(reference)
    tokenizer = load_tokenizer(plan.model, read_config(plan.model, checkpoint_formats(plan)))
    tokens = np.array(tokenizer.encode(text)[:most], np.int32)
    ours, theirs = Reader(plan, len(tokens)), Reader(reference, len(tokens))
    sums = np.zeros(4)  # our and their likelihoods, divergence, agreements
    for first in range(0, len(tokens) - 1, PIECE):
        piece = tokens[first : first + PIECE]
        follows = tokens[first + 1 : first + PIECE + 1]
        mine, right = (log_softmax(reader.read(piece, first)[: len(follows)]) for reader in (ours, theirs))
        rows = np.arange(len(follows))
        sums += (
            -mine[rows, follows].sum(),
            -right[rows, follows].sum(),
            (np.exp(right) * (right - mine)).sum(),
            (mine.argmax(1) == right.argmax(1)).sum(),
        )
    counted = len(tokens) - 1
    nll, reference_nll, kl, same = (sums / counted).tolist()
    *layers, head = ours.decoder.linears
    formats = tuple(dict.fromkeys(linear.format for linear in ours.decoder.linears))
    return Quality(
        plan.settings["model"],
        counted,
        nll,
        reference_nll,
        kl,
        same,
        sum(linear.nbytes for linear in layers),
        head.nbytes,
        formats,
    )


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m core.bench.quality",
        description="Perplexity of a composition on a text, and how far its predictions are from those of the same model "
        "unpacked. Flags that are not listed here go to the composition: --quantization and the like.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", default="demo", help="as the server's (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--text", type=Path, default=TEXT, help="what is read (default: a story that comes along)")
    parser.add_argument("--tokens", type=int, default=2048, help="how much of it, at most (default: %(default)s)")
    known, more = parser.parse_known_args(argv)
    base = ["--model", known.model, "--dtype", known.dtype, "--max-model-len", str(max(16, known.tokens))]
    try:
        found = measure(compose([*base, *more]), compose(base), known.text.read_text(encoding="utf-8"), known.tokens)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    say = _saying(sys.stdout.write)
    say("tokens read", f"{found.tokens}")
    say("perplexity", f"{found.perplexity:.4f}, unpacked {found.reference_perplexity:.4f}")
    say("", f"{found.perplexity / found.reference_perplexity - 1:+.2%}; NLL {found.nll:.4f}, {found.reference_nll:.4f}")
    say("divergence", f"{found.kl:.5f} nats a token")
    say("same best token", f"{found.same_best:.1%}")
    say("bytes of the layers", f"{found.layer_bytes:,}")
    say("bytes of the head", f"{found.head_bytes:,}")
    say("held as", "; ".join(found.formats))
    return ExitCode.OK


def _saying(write: Callable[[str], object]) -> Callable[[str, str], None]:
    def say(name: str, value: str) -> None:
        write(f"{name:<20} {value}\n")

    return say


if __name__ == "__main__":
    sys.exit(main())
