"""Tokenizers of the ``tokenizers`` library: tokenizer.json, and what has been rebuilt as one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken

from core.errors import UserError
from core.text.pieces import PieceTokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class JsonTokenizer(PieceTokenizer):
    """``named`` tokens that the library does not mark as special are. ``add_bos``, ``add_eos`` None: as the file says."""

    def __init__(
        self,
        library: tokenizers.Tokenizer,
        *,
        named: Mapping[str, str],
        eos_token_ids: Sequence[int] = (),
        add_bos: bool | None = None,
        add_eos: bool | None = None,
        where: str = "",
    ) -> None:
        library.no_truncation()
        library.no_padding()
        added = library.get_added_tokens_decoder()
        marked = {token.content for token in added.values() if token.special}
        unmarked = [
            name for name in dict.fromkeys(named.values()) if name not in marked and library.token_to_id(name) is not None
        ]
        if unmarked:
            library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in unmarked])
            added = library.get_added_tokens_decoder()
        self._library = library
        self._decoding = _Decoding(library.decoder, where)
        bos, eos = (library.token_to_id(named[role]) if role in named else None for role in ("bos_token", "eos_token"))
        prefix, suffix = self._surroundings()
        if bos is not None and add_bos is not None:
            prefix = [bos, *(token for token in prefix if token != bos)] if add_bos else [t for t in prefix if t != bos]
        if eos is not None and add_eos is not None:
            suffix = [*(token for token in suffix if token != eos), eos] if add_eos else [t for t in suffix if t != eos]
        super().__init__(
            vocab_size=library.get_vocab_size(with_added_tokens=True),
            special_ids=(token_id for token_id, token in added.items() if token.special),
            eos_token_ids=tuple(dict.fromkeys((*eos_token_ids, *(() if eos is None else (eos,))))),
            bos_token_id=bos,
            named=named,
            prefix=prefix,
            suffix=suffix,
            first_spaces=self._decoding.first_spaces,
        )

    def as_json(self) -> str:
        """What a tokenizer.json holds."""
        return str(self._library.to_str())

    def _surroundings(self) -> tuple[list[int], list[int]]:
        """What the library's post-processor puts around a text."""
        alone = self._library.encode("a", add_special_tokens=False).ids
        whole = self._library.encode("a", add_special_tokens=True).ids
        spare = len(whole) - len(alone)
        before = next((at for at in range(spare + 1) if whole[at : at + len(alone)] == alone), 0)
        return whole[:before], whole[before + len(alone) :]

    def _split(self, text: str) -> list[int]:
        return list(self._library.encode(text, add_special_tokens=False).ids)

    def _piece(self, token_id: int) -> bytes:
        piece = self._library.id_to_token(token_id)
        return b"" if piece is None else self._decoding.bytes_of(piece)


class _Decoding:
    """What a tokenizer.json's decoder does to one piece, and to the start of the text."""

    def __init__(self, decoder: Any, where: str) -> None:
        self._replaced: list[tuple[str, str]] = []
        self._byte_level: dict[str, int] | None = None
        self._byte_fallback = False
        self.first_spaces = 0
        stages = [] if decoder is None else [json.loads(decoder.__getstate__())]
        if stages and stages[0]["type"] == "Sequence":
            stages = stages[0]["decoders"]
        for stage in stages:
            match stage:
                case {"type": "ByteLevel"}:
                    self._byte_level = byte_alphabet()
                case {"type": "ByteFallback"}:
                    self._byte_fallback = True
                case {"type": "Replace", "pattern": {"String": pattern}, "content": content}:
                    self._replaced.append((pattern, content))
                case {"type": "Metaspace", "replacement": mark}:
                    self._replaced.append((mark, " "))
                    self.first_spaces = 0 if stage.get("prepend_scheme") == "never" else 1
                case {"type": "Strip", "content": " ", "start": start, "stop": 0}:
                    self.first_spaces = start
                case {"type": "Fuse"}:
                    pass
                case _:
                    raise UserError.of(
                        f"the tokenizer's decoder {stage['type']} is not supported, only byte-level and SentencePiece ones are",
                        where,
                        "use the tokenizer.model of the checkpoint instead",
                    )

    def bytes_of(self, piece: str) -> bytes:
        if self._byte_level is not None:
            try:
                return bytes([self._byte_level[char] for char in piece])
            except KeyError:  # an added token, written as it is
                return piece.encode()
        if self._byte_fallback and (byte := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        for pattern, content in self._replaced:
            piece = piece.replace(pattern, content)
        return piece.encode()


def byte_alphabet() -> dict[str, int]:
    """The characters byte-level BPE writes bytes with: printable Latin-1 as it is, the other bytes from U+0100 on."""
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    alphabet = {chr(byte): byte for byte in itself}
    alphabet.update({chr(0x100 + rank): byte for rank, byte in enumerate(b for b in range(256) if b not in itself)})
    return alphabet
