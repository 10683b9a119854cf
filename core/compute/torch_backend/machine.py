"""The memory of a device, and what to say when it runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from core.errors import UserError
from core.host import free_and_total_memory


def free_and_total(device: torch.device) -> tuple[int, int]:
    return torch.cuda.mem_get_info(device) if device.type == "cuda" else free_and_total_memory()


@contextmanager
def memory_for(what: str, *remedies: str) -> Iterator[None]:
    """Tell the user what did not fit, and what to do, instead of showing an allocator's traceback."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UserError.of(f"there is not enough memory for {what}", "", *remedies) from error
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        raise UserError.of(f"there is not enough memory for {what}", "", *remedies) from error
