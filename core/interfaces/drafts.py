"""A draft proposer: guesses what a request will generate next, so that one step can check several tokens at once.

The engine computes a drafted row's last token and its drafts together and samples at each of these places, with the random
number that belongs to the place. Sampled tokens are kept up to and including the first that differs from its draft. So the
tokens of a request are the same with and without drafts, at any temperature: a good guess saves steps, a bad one costs the
computing of its tokens, and neither changes a result. (For a draft that is one token rather than a distribution this is
the rejection scheme of Leviathan et al., 2023, "Fast Inference from Transformers via Speculative Decoding".)

Requests with penalties, a grammar or words they may not say are never drafted for, nor those that have not reached their
``min_tokens``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray


class DraftProposer(ABC):
    """``most``: drafts it ever gives to one row. ``most_rows``: with more rows decoding it is not asked, since a step then
    costs about as much for each token as it does for each row.
    """

    most: int
    most_rows: int

    @abstractmethod
    def propose(self, request_id: str, tokens: NDArray[np.int32], most: int) -> NDArray[np.int32]:
        """Up to ``most`` tokens that may follow ``tokens``, the prompt and what was generated; none is a fine answer.

        ``tokens`` is a view that must not be kept. Called once a step for every decoding row, so it has microseconds.
        """

    def observe(self, request_id: str, proposed: int, accepted: int) -> None:  # noqa: B027 - not everybody learns
        """How many of the tokens last proposed turned out right. Only called when some were proposed."""

    def forget(self, request_id: str) -> None:  # noqa: B027
        """The request has ended, or waits again."""
