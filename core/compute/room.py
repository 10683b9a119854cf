"""Whether KV pages fit the memory that is free, and what a user is told when they do not: the same in every framework."""

from __future__ import annotations

from core.errors import UserError
from core.interfaces.compute import DTYPE_BYTES, DType
from core.interfaces.model import DecoderSpec

REMEDIES = (
    "lower --num-gpu-blocks-override, or leave it out to size the pages from memory",
    "lower --max-num-seqs or --max-model-len",
)


def for_pages(
    spec: DecoderSpec,
    dtype: DType,
    num_pages: int,
    page_size: int,
    free: int,
    device: str,
    bytes_per_token: int | None = None,
) -> str:
    """What the pages are called in a message. ``bytes_per_token``: if not its keys and values in ``dtype``.

    :raises UserError: when they are larger than the ``free`` bytes.
    """
    wanted = num_pages * page_size * (bytes_per_token or spec.kv_bytes_per_token(DTYPE_BYTES[dtype]))
    what = f"{num_pages} KV pages of {page_size} tokens ({wanted / 2**30:.2f} GiB)"
    if wanted > free:
        raise UserError.of(f"there is not enough memory for {what}: {free / 2**30:.2f} GiB of {device} is free", "", *REMEDIES)
    return what
