"""The page of the server: a chat, a dashboard, and what goes together. Files only; the front end shows them at ``/``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from core.hookspecs import hookimpl
from core.offers import Alias, PageOffer


@hookimpl
def register_pages() -> Iterable[PageOffer]:
    """The page itself."""
    yield PageOffer(
        name="web",
        summary="a page for browsers: chat, live dashboard, what goes together",
        folder=lambda: Path(__file__).parent / "page",
        aliases=(Alias(flag="--web", chooses="web", summary="show browsers this page; --no-web shows them none"),),
    )
