"""Tokenizers of the ``sentencepiece`` library: tokenizer.model, and what has been rebuilt as one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import sentencepiece

from core.text.pieces import PieceTokenizer

_SPACE_MARK = "\u2581"
# Appended to a serialized model it overrides one field: normalizer_spec { add_dummy_prefix: false }.
_NO_LEADING_SPACE = b"\x1a\x02\x18\x00"


class SentencePieceTokenizer(PieceTokenizer):
    """The library does not see control tokens written in a text, so the text is split on ``added`` (content to id) first.

    ``each_part_is_a_text``: whether a part behind a control token gets the model's leading space too, as the first always does.
    """

    def __init__(
        self,
        model: bytes,
        *,
        named: Mapping[str, str],
        added: Mapping[str, int],
        special: Iterable[str],
        eos_token_ids: Sequence[int] = (),
        add_bos: bool = False,
        add_eos: bool = False,
        each_part_is_a_text: bool = True,
    ) -> None:
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._bare = self._pieces
        if not each_part_is_a_text:
            self._bare = sentencepiece.SentencePieceProcessor(model_proto=model + _NO_LEADING_SPACE)
        size = self._pieces.get_piece_size()
        self._added = dict(added)
        self._added_content = {token_id: content for content, token_id in added.items()}
        by_length = sorted(self._added, key=len, reverse=True)
        self._splitter = re.compile("(" + "|".join(map(re.escape, by_length)) + ")") if by_length else None
        roles = {"bos_token": self._pieces.bos_id(), "eos_token": self._pieces.eos_id()}
        bos, eos = (self._id_of(named[role]) if role in named else own if own >= 0 else None for role, own in roles.items())
        special_ids = {token_id for token_id in (self._id_of(content) for content in special) if token_id is not None}
        special_ids.update(i for i in range(size) if self._pieces.is_control(i) or self._pieces.is_unknown(i))
        own_names = {role: self._pieces.id_to_piece(own) for role, own in roles.items() if own >= 0}
        super().__init__(
            vocab_size=max([size, *(token_id + 1 for token_id in self._added_content)]),
            special_ids=special_ids,
            eos_token_ids=tuple(dict.fromkeys((*eos_token_ids, *(() if eos is None else (eos,))))),
            bos_token_id=bos,
            named={**own_names, **named},
            prefix=[bos] if add_bos and bos is not None else (),
            suffix=[eos] if add_eos and eos is not None else (),
            first_spaces=self._spaces_of_its_own(),
        )

    def _id_of(self, content: str) -> int | None:
        if content in self._added:
            return self._added[content]
        token_id: int = self._pieces.piece_to_id(content)
        return token_id if self._pieces.id_to_piece(token_id) == content else None

    def _spaces_of_its_own(self) -> int:
        mark = self._id_of(_SPACE_MARK)
        if mark is None:
            return 0
        return {"  ": 0, " ": 1}.get(self._pieces.decode([mark, mark]), -1)

    def _split(self, text: str) -> list[int]:
        if self._splitter is None:
            return list(self._pieces.encode(text))
        ids: list[int] = []
        library = self._pieces
        for at, part in enumerate(self._splitter.split(text)):
            if at % 2:
                ids.append(self._added[part])
                library = self._bare
            elif part:
                ids += library.encode(part)
        return ids

    def _piece(self, token_id: int) -> bytes:
        if (content := self._added_content.get(token_id)) is not None:
            return content.encode()
        if not 0 <= token_id < self._pieces.get_piece_size():
            return b""
        piece: str = self._pieces.id_to_piece(token_id)
        if self._pieces.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(_SPACE_MARK, " ").encode()
