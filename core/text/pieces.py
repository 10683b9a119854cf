"""Tokenizers of every kind of checkpoint, behind one face.

Whatever library splits text, a token is a fixed run of bytes, and the text of a sequence is those runs joined and read as
UTF-8. So detokenizing needs no library call, can go on token by token, and is the same for all kinds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence


class PieceTokenizer(ABC):
    """Ids to text for all kinds; a kind adds how text is split and which bytes each id stands for.

    ``named`` are the control tokens by role ("bos_token": "<s>"), for chat templates. ``first_spaces`` is how many spaces
    at the start of a whole text are SentencePiece's own: 0, 1, or -1 for any number.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        special_ids: Iterable[int],
        eos_token_ids: Sequence[int],
        bos_token_id: int | None,
        named: Mapping[str, str],
        prefix: Sequence[int] = (),
        suffix: Sequence[int] = (),
        first_spaces: int = 0,
    ) -> None:
        self.vocab_size = vocab_size
        self.special_ids = frozenset(special_ids)
        self.eos_token_ids = tuple(eos_token_ids)
        self.bos_token_id = bos_token_id
        self.named = dict(named)
        self._prefix = list(prefix)
        self._suffix = list(suffix)
        self._first_spaces = first_spaces
        self._bytes: dict[int, bytes] = {}

    @abstractmethod
    def _split(self, text: str) -> list[int]:
        """The ids of the text alone, control tokens written in it recognized."""

    @abstractmethod
    def _piece(self, token_id: int) -> bytes:
        """The bytes of one id; b"" for an id that the vocabulary has not."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        # A lone surrogate (which JSON can write) is no text and would fail inside the libraries.
        ids = self._split(text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text)
        return [*self._prefix, *ids, *self._suffix] if add_special_tokens else ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        skipped = self.special_ids if skip_special_tokens else frozenset()
        text = b"".join(self.token_bytes(token) for token in ids if token not in skipped).decode("utf-8", "replace")
        if self._first_spaces == 0:
            return text
        return text.lstrip(" ") if self._first_spaces < 0 else text.removeprefix(" " * self._first_spaces)

    def token_bytes(self, token_id: int) -> bytes:
        known = self._bytes.get(token_id)
        if known is None:
            known = self._piece(token_id)
            if known:  # what is no token of ours is not worth remembering, and there is no end of it
                self._bytes[token_id] = known
        return known

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")


class ByteTokenizer(PieceTokenizer):
    """For models without a tokenizer (``random:``): the lowest ids that control nothing are the bytes.

    The ids above them, which such a model generates nearly always, are made-up words, so that streams, stop strings and offsets
    have something to work on. A vocabulary too small for 256 bytes folds them.
    """

    CLASS = "DovetailBytes"  # "tokenizer_class" in the tokenizer_config.json of such a model that was saved

    def __init__(self, vocab_size: int, *, bos: int | None, eos: Sequence[int], others: Iterable[int] = ()) -> None:
        special = {token_id for token_id in (bos, *eos, *others) if token_id is not None}
        self._of_byte = [token_id for token_id in range(vocab_size) if token_id not in special][:256]
        self._byte_of = {token_id: byte for byte, token_id in enumerate(self._of_byte)}
        super().__init__(vocab_size=vocab_size, special_ids=special, eos_token_ids=eos, bos_token_id=bos, named={})

    def _split(self, text: str) -> list[int]:
        return [self._of_byte[byte % len(self._of_byte)] for byte in text.encode()]

    def _piece(self, token_id: int) -> bytes:
        if (byte := self._byte_of.get(token_id)) is not None:
            return bytes([byte])
        if not 0 <= token_id < self.vocab_size:
            return b""
        if token_id in self.special_ids:
            return b"<%d>" % token_id
        word = b""
        while token_id:
            token_id, syllable = divmod(token_id, 70)
            word += b"bdfghklmnprstv"[syllable // 5 :][:1] + b"aeiou"[syllable % 5 :][:1]
        return b" " + word
