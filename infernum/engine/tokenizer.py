"""Text to token ids and back, by the model's own tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import tokenizers

from infernum.errors import ConfigError

BROKEN = "\ufffd"
"""What a decoder writes for bytes that are not, or not yet, a character."""

PATIENCE = 16
"""So many tokens without a whole character are garbage, not a character still to be completed."""

CONTEXT = 6
"""Tokens of the prompt that show a decoder whether the first new token begins with a space."""


class Tokenizer:
    """A Hugging Face tokenizer whose `encode` puts the beginning-of-sequence token (BOS) first exactly once.

    `bos` is the token's text, None when the model has none. `add_bos` is `add_bos_token` of
    tokenizer_config.json; None leaves it to the post-processor of tokenizer.json.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, *, bos: str | None = None, add_bos: bool | None = None
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.bos_id: int | None = backend.token_to_id(bos) if bos else None
        added = cast("dict[int, Any]", backend.get_added_tokens_decoder())
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        self._processor_adds_bos = self.bos_id is not None and list(backend.encode("").ids[:1]) == [
            self.bos_id
        ]
        self.adds_bos = self.bos_id is not None and (self._processor_adds_bos if add_bos is None else add_bos)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; the model's own vocabulary may be padded beyond it."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """The token ids of a prompt; BOS is in front where the model or the text puts it, never twice."""
        ids = list(self._backend.encode(text).ids)
        if self._processor_adds_bos:
            ids = ids[1:]
        if self.adds_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids = [self.bos_id, *ids]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self._backend.decode(list(ids), skip_special_tokens=True)


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of the model in `folder`, or None when it has no tokenizer.json.

    Raises ConfigError when tokenizer.json or tokenizer_config.json is there but broken.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises plain Exception
        raise ConfigError(f"{path}: is not a tokenizer ({_first_line(error)}); download it again") from error
    config = _read_object(folder / "tokenizer_config.json")
    bos = config.get("bos_token", _read_object(folder / "special_tokens_map.json").get("bos_token"))
    if isinstance(bos, dict):
        bos = cast("dict[str, object]", bos).get("content")
    if bos is not None and not isinstance(bos, str):
        raise ConfigError(f"{folder / 'tokenizer_config.json'}: bos_token is {bos!r}; it must be a string")
    add_bos = config.get("add_bos_token")
    if add_bos is not None and not isinstance(add_bos, bool):
        raise ConfigError(
            f"{folder / 'tokenizer_config.json'}: add_bos_token is {add_bos!r}; it must be true or false"
        )
    tokenizer = Tokenizer(backend, bos=bos, add_bos=add_bos)
    if add_bos and tokenizer.bos_id is None:
        where = folder / "tokenizer_config.json"
        raise ConfigError(f"{where}: add_bos_token is true, but bos_token {bos!r} is no token of {path.name}")
    return tokenizer


class TextStream:
    """Turns the tokens of one sequence into text as they come.

    Only whole characters are handed out, and nothing that may still turn out to begin a stop string. A
    token's text can depend on the ones before it (leading spaces, characters split over tokens), so each is
    decoded together with its predecessors, and what those alone give is taken off.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), stop: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._tokens = _tail(tokenizer, prompt)
        self._shown_from, self._unread_from = 0, len(self._tokens)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take one more token and return the text that is now certain. A stop string sets `stopped`."""
        if self.stopped or token in self._tokenizer.special_ids:
            return ""
        self._tokens.append(token)
        before, text = self._decoded()
        unfinished = text.endswith(BROKEN) and len(self._tokens) - self._unread_from < PATIENCE
        if unfinished or len(text) <= len(before):
            return ""
        self._shown_from, self._unread_from = self._unread_from, len(self._tokens)
        return self._without_stop(text[len(before) :], final=False)

    def flush(self) -> str:
        """The text still held back, at the end of the sequence; half a character becomes U+FFFD."""
        if self.stopped:
            return ""
        before, text = self._decoded()
        unread = self._tokens[self._unread_from :]
        left = text[len(before) :] if text.startswith(before) else self._tokenizer.decode(unread)
        self._shown_from = self._unread_from = len(self._tokens)
        return self._without_stop(left, final=True)

    def _decoded(self) -> tuple[str, str]:
        """The text since `_shown_from`: without the unread tokens, and with them.

        Half a character that a prompt ended in, and that the unread tokens complete, is not part of the first.
        """
        before = self._tokenizer.decode(self._tokens[self._shown_from : self._unread_from])
        text = self._tokenizer.decode(self._tokens[self._shown_from :])
        return before if text.startswith(before) else before.rstrip(BROKEN), text

    def _without_stop(self, new: str, *, final: bool) -> str:
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if final else _may_begin(text, self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _may_begin(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of `text` with which a stop string begins."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    lengths = range(min(longest, len(text)), 0, -1)
    return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in stops)), 0)


def _tail(tokenizer: Tokenizer, prompt: Sequence[int]) -> list[int]:
    """The last tokens of a prompt, from one that begins a character on."""
    ordinary = [token for token in prompt[-4 * CONTEXT :] if token not in tokenizer.special_ids]
    for size in range(CONTEXT, CONTEXT + 4):
        if not tokenizer.decode(ordinary[-size:]).startswith(BROKEN):
            return ordinary[-size:]
    return ordinary[-CONTEXT:]


def _read_object(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not valid JSON ({_first_line(error)}); download it again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds no JSON object; download it again")
    return cast("dict[str, object]", value)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
