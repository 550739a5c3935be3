"""Text to token ids and back, by the model's own tokenizer.json."""

from __future__ import annotations

import codecs
import json
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, cast

import tokenizers

from infernum.engine.fallback_decoder import BROKEN, FallbackDecoder
from infernum.errors import ConfigError, RequestError
from infernum.model_folder.folder import TOKENIZER, TOKENIZER_CONFIG, find_tokenizer
from infernum.model_folder.problems import Problem, is_listed
from infernum.model_folder.reading import first_line, read_object, read_text

log = logging.getLogger(__name__)

TOKEN_IDS = "`infernum run --prompt-ids 1,2,3`, or a list of integers in Python"
"""How to pass a prompt without a tokenizer, for errors."""

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The names of special tokens in tokenizer_config.json, which are variables of chat templates."""

PATIENCE = 16
"""Number of tokens after which an incomplete character is garbage that no further token will complete."""

CONTEXT = 6
"""Number of prompt tokens that a decoder needs to know whether the first new token begins with a space."""


_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
"""How vocabularies of SentencePiece spell a single byte."""


_FALLBACK: list[dict[str, object]] = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_STRIP: dict[str, object] = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
"""The decoder of Llama 2, Mistral and Gemma in tokenizer.json, and what some of them have behind it."""


def _bytes_by_character() -> dict[str, int]:
    """The characters by which byte-level vocabularies, since GPT-2, spell bytes; printable ones are themselves."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _bytes_by_character()


class Tokenizer:
    """A Hugging Face tokenizer, and the special tokens that it puts around a prompt.

    The rules for these tokens are those of transformers:

    front   `add_bos_token` of tokenizer_config.json: true adds BOS, false adds nothing. Where the field is missing,
            the post-processor of tokenizer.json decides. config.json alone never adds a token
    behind  likewise by `add_eos_token`, EOS, and the end of the post-processor. EOS behind a prompt ends the text
            that the model should continue, so loading such a tokenizer warns
    BOS     `bos_token` of tokenizer_config.json, a string or an object with `content`; else that of
            special_tokens_map.json; else the first token of the post-processor; else `bos_token_id` of
            generation_config.json; else of config.json
    EOS     `eos_token` of the same two files; else the last token of the post-processor

    Unlike in transformers, a front token that the text of the prompt begins with is not added a second time.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos: str | None = None,
        add_bos: bool | None = None,
        eos: str | None = None,
        add_eos: bool | None = None,
        bos_id: int | None = None,
        named: Mapping[str, str] | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        front, behind = _template(backend)
        self.bos_id: int | None = backend.token_to_id(bos) if bos else next(iter(front), bos_id)
        self.eos_id: int | None = backend.token_to_id(eos) if eos else next(reversed(behind), None)
        self._front = _switched(front, add_bos, self.bos_id)
        self._behind = _switched(behind, add_eos, self.eos_id)
        decoder = b"{}" if backend.decoder is None else cast("bytes", backend.decoder.__getstate__())
        self._by_bytes = b'"ByteLevel"' in decoder
        self.adds_bytes: bool = json.loads(decoder).get("type") == "ByteLevel"
        """True where a text is the bytes of its tokens, whatever stands around them."""
        steps = json.loads(decoder).get("decoders", [])
        self.falls_back: bool = steps[: len(_FALLBACK)] == _FALLBACK and steps[len(_FALLBACK) :] in (
            [],
            [_STRIP],
        )
        """True where a text is the texts of its tokens, and the bytes of those that are bytes (`FallbackDecoder`)."""
        self.strips_space: bool = steps[-1:] == [_STRIP]
        """True where a text does not begin with the space of its first word."""
        self._bytes: dict[int, bytes] = {}
        self._pieces: dict[int, str | int] = {}
        added = cast("dict[int, Any]", backend.get_added_tokens_decoder())
        self.special: Mapping[int, str] = {
            number: token.content for number, token in added.items() if token.special
        }
        """The texts of the special tokens, which `decode` leaves out."""
        self.named: Mapping[str, str] = dict(named or {})
        """The texts of the special tokens that the model's folder names, such as `bos_token`."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; the model's own vocabulary may be padded beyond it."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def adds_eos(self) -> bool:
        """True when the tokenizer adds a token behind every prompt."""
        return bool(self._behind)

    def encode(self, text: str) -> list[int]:
        """The token ids of a prompt, with the special tokens in front and behind. Raises RequestError."""
        ids = self.encode_chat(text)
        return ids if ids[len(ids) - len(self._behind) :] == self._behind else [*ids, *self._behind]

    def encode_plain(self, text: str) -> list[int]:
        """The token ids of a text alone. Raises RequestError."""
        try:
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        except Exception as error:  # tokenizers raises plain Exception
            raise RequestError(
                f"the prompt cannot be split into tokens ({first_line(error)}); give token ids"
            ) from error

    def encode_chat(self, text: str) -> list[int]:
        """The token ids of a rendered conversation, with the special tokens in front and none behind.

        Raises RequestError.
        """
        ids = self.encode_plain(text)
        typed = sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._front, ids, strict=False))
        )
        return [*self._front, *ids[typed:]]

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids, special tokens left out unless `special`."""
        return self._backend.decode(list(ids), skip_special_tokens=not special)

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for wherever it is: a space at its front, or a part of a character, too."""
        of_token = self._bytes.get(token)
        if of_token is None:
            of_token = self._bytes[token] = self._encoded(token)
        return of_token

    def piece_of(self, token: int) -> str | int:
        """The text or the byte that a token stands for, where `falls_back` holds."""
        piece = self._pieces.get(token)
        if piece is None:
            spelled = self.spelled(token)
            byte = _BYTE_TOKEN.fullmatch(spelled)
            piece = self._pieces[token] = int(byte[1], 16) if byte else spelled.replace("▁", " ")
        return piece

    def _encoded(self, token: int) -> bytes:
        spelled = self.spelled(token)
        if self._by_bytes:
            try:
                return bytes([_BYTES[character] for character in spelled])
            except KeyError:
                return spelled.encode()  # an added token
        if token in self.special:
            return spelled.encode()
        if byte := _BYTE_TOKEN.fullmatch(spelled):
            return bytes.fromhex(byte[1])
        return spelled.replace("▁", " ").encode()

    def token(self, text: str) -> int | None:
        """The token that is spelled so; None where the vocabulary has none."""
        return self._backend.token_to_id(text)

    def spelled(self, token: int) -> str:
        """A token as the vocabulary spells it; empty for one that it has not."""
        return self._backend.id_to_token(token) or ""


def _template(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens that the post-processor adds in front of every text, and the tokens that it adds behind."""
    added = cast("dict[int, Any]", backend.get_added_tokens_decoder())
    text = next((token.content for token in added.values()), "a")
    encoding = backend.encode(text)
    of_text = [place for place, mask in enumerate(encoding.special_tokens_mask) if not mask]
    if not of_text:
        return list(encoding.ids), []
    return list(encoding.ids[: of_text[0]]), list(encoding.ids[of_text[-1] + 1 :])


def _switched(template: list[int], add: bool | None, token: int | None) -> list[int]:
    """The tokens on one side of a prompt: those of the template, unless the setting `add` is given."""
    if add is None:
        return template
    return [token] if add and token is not None else []


def load_tokenizer(folder: Path, bos_id: int | None = None) -> Tokenizer | None:
    """The tokenizer of the model in `folder`, or None when it has no tokenizer.json.

    `bos_id` is the `bos_token_id` of the model's settings. Raises ConfigError when tokenizer.json or a file
    beside it that describes the special tokens is there but broken.
    """
    path = folder / TOKENIZER
    content = read_text(path)
    if content is None:
        return None
    try:
        backend = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # tokenizers raises plain Exception
        raise ConfigError(f"{path}: is not a tokenizer ({first_line(error)}); download it again") from error
    where = folder / TOKENIZER_CONFIG
    config, special = read_object(where), read_object(folder / "special_tokens_map.json")
    texts = {name: _token_text(name, where, config, special) for name in NAMES}
    bos, eos = texts["bos_token"], texts["eos_token"]
    add_bos, add_eos = (_flag(name, where, config) for name in ("add_bos_token", "add_eos_token"))
    tokenizer = Tokenizer(
        backend,
        bos=bos,
        add_bos=add_bos,
        eos=eos,
        add_eos=add_eos,
        bos_id=bos_id,
        named={name: text for name, text in texts.items() if text is not None},
    )
    for add, token, text, name in (
        (add_bos, tokenizer.bos_id, bos, "bos_token"),
        (add_eos, tokenizer.eos_id, eos, "eos_token"),
    ):
        if add and token is None:
            raise ConfigError(f"{where}: add_{name} is true, but {name} {text!r} is no token of {path.name}")
    if tokenizer.adds_eos:
        log.warning(
            "%s: ends every prompt with an end token, as transformers does; for prompts that are to be continued, "
            'put "add_eos_token": false into %s',
            path if add_eos is None else where,
            where.name,
        )
    return tokenizer


def has_tokenizer(folder: Path | None) -> bool:
    """True where there is a tokenizer.json, even if `load_tokenizer` rejects it."""
    return folder is not None and is_listed(folder / TOKENIZER)


def why_no_tokenizer(folder: Path | None, model: str) -> str:
    """The error for a text prompt without a tokenizer: the reason, and what to do."""
    if folder is None:
        return f"{model}: is a preset without a tokenizer; give token ids ({TOKEN_IDS})"
    other = find_tokenizer(folder)
    if isinstance(other, Problem):
        return f"{other}, or give token ids ({TOKEN_IDS})"
    return f"{folder}: has no {TOKENIZER}; download it, or give token ids ({TOKEN_IDS})"


class TextStream:
    """Turns the tokens of one sequence into text as they come.

    Only whole characters are returned, and no text that may still begin a stop string.

    Special tokens are not shown, unless `special`: all, or those of these texts. A stop string that contains the text
    of a special token is searched in the text with special tokens spelled out; any other stop string in the shown text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int] = (),
        stop: tuple[str, ...] = (),
        *,
        special: bool | Collection[str] = False,
    ) -> None:
        self._tokenizer = tokenizer
        self.stops = bool(stop)
        """True when there is a stop string to look for."""
        shown = tokenizer.special.values() if special is True else special or ()
        self._hidden = {token: text for token, text in tokenizer.special.items() if text not in shown}
        texts = [text for text in tokenizer.special.values() if text]
        self._spelled_stops = tuple(text for text in stop if any(part in text for part in texts))
        self._shown_stops = tuple(text for text in stop if text not in self._spelled_stops)
        before = [token for token in prompt[-4 * CONTEXT :] if token not in tokenizer.special]
        if tokenizer.adds_bytes:
            self._decoder = ByteDecoder(tokenizer, before)
        elif tokenizer.falls_back:
            self._decoder = FallbackDecoder(tokenizer.piece_of, before, strips_space=tokenizer.strips_space)
        else:
            self._decoder = ContextDecoder(tokenizer, before, bool(special))
        self._held: list[Character] = []
        self.stop_text: str | None = None
        """The stop string that has ended the text."""

    @property
    def stopped(self) -> bool:
        """True once a stop string has ended the text."""
        return self.stop_text is not None

    def push(self, token: int) -> str:
        """Add a token, and return the text that is complete now. A stop string ends it (`stop_text`)."""
        if self.stopped:
            return ""
        if self.hides(token) and self._spelled_stops:
            return self._push_special(self._tokenizer.special[token])
        return self.push_all((token,))

    def push_all(self, tokens: Iterable[int]) -> str:
        """Add tokens at once, and return the text that is complete now."""
        shown = [token for token in tokens if token not in self._hidden]
        if not shown:
            return ""
        text = self._decoder.push(shown)
        return self._without_stop(_characters(text)) if text and self.stops else text

    def hides(self, token: int) -> bool:
        """True for a special token that is not shown."""
        return token in self._hidden

    def flush(self) -> str:
        """The rest of the text, at the end of the sequence; half a character becomes U+FFFD."""
        return "" if self.stopped else self._without_stop(_characters(self._decoder.rest()), final=True)

    def _push_special(self, text: str) -> str:
        return self._without_stop([*_characters(self._decoder.rest()), *_characters(text, shown=False)])

    def _without_stop(self, new: list[Character], *, final: bool = False) -> str:
        """The part of the held text and `new` that can be shown; at the end of the sequence (`final`), all of it."""
        held = self._held + new
        places = [place for place, character in enumerate(held) if character.shown]
        spelled, shown = _text(held), _text(held[place] for place in places)
        starts = [(spelled.find(stop), stop) for stop in self._spelled_stops if stop in spelled]
        starts += [(places[shown.find(stop)], stop) for stop in self._shown_stops if stop in shown]
        if starts:
            end, self.stop_text = min(starts)
        elif final:
            end = len(held)
        else:
            begun = len(shown) - _may_begin(shown, self._shown_stops)
            end = min(len(spelled) - _may_begin(spelled, self._spelled_stops), [*places, len(held)][begun])
        self._held = [] if starts else held[end:]
        return _text(character for character in held[:end] if character.shown)


class ByteDecoder:
    """Tokens to text where a text is the bytes of its tokens.

    A character that the tokens before begin is returned whole, once it is complete.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int]) -> None:
        self._bytes_of = tokenizer.bytes_of
        self._pending = b""
        self._after_half = False
        self.push(before)
        self._after_half = bool(self._pending)

    def push(self, tokens: Iterable[int]) -> str:
        """The characters that are complete with these tokens."""
        return self._text(b"".join(map(self._bytes_of, tokens)), final=False)

    def rest(self) -> str:
        """What the tokens so far have besides; half a character becomes U+FFFD."""
        return self._text(b"", final=True)

    def _text(self, more: bytes, *, final: bool) -> str:
        pending = self._pending + more
        text, used = codecs.utf_8_decode(pending, "replace", final)
        self._pending = pending[used:]
        if self._after_half and text:  # what is broken at its front is the prompt's
            self._after_half = False
            return text.removeprefix(BROKEN)
        return text


class ContextDecoder:
    """Tokens to text where the text of a token can depend on the tokens before it, as by leading spaces.

    Tokens are decoded together with their predecessors, and the text of the predecessors is removed from the front. The
    `DecodeStream` of tokenizers is faster, but repeats the prompt where it ends in half a character, and fails for good
    at bytes that are none.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int], special: bool) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._tokens = _tail(tokenizer, before)
        self._shown_from, self._unread_from = 0, len(self._tokens)

    def push(self, tokens: Iterable[int]) -> str:
        """The characters that are complete with these tokens."""
        self._tokens += tokens
        before, text = self._decoded()
        unfinished = text.endswith(BROKEN) and len(self._tokens) - self._unread_from < PATIENCE
        if unfinished or len(text) <= len(before):
            return ""
        self._shown_from, self._unread_from = self._unread_from, len(self._tokens)
        return text[len(before) :]

    def rest(self) -> str:
        """What the tokens so far have besides; half a character becomes U+FFFD."""
        before, text = self._decoded()
        unread = self._tokens[self._unread_from :]
        if unread:
            self._shown_from, self._unread_from = self._unread_from, len(self._tokens)
        return text[len(before) :] if text.startswith(before) else self._text_of(unread)

    def _text_of(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, special=self._special)

    def _decoded(self) -> tuple[str, str]:
        """The text since `_shown_from`: without the unread tokens, and with them.

        The first leaves out half a character at the end of the prompt, if the unread tokens complete it.
        """
        before = self._text_of(self._tokens[self._shown_from : self._unread_from])
        text = self._text_of(self._tokens[self._shown_from :])
        return before if text.startswith(before) else before.rstrip(BROKEN), text


class Character(NamedTuple):
    """A character of generated text. `shown` is False in the text of a special token."""

    text: str
    shown: bool


def _characters(text: str, *, shown: bool = True) -> list[Character]:
    return [Character(character, shown) for character in text]


def _text(characters: Iterable[Character]) -> str:
    return "".join(character.text for character in characters)


def _may_begin(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of `text` with which a stop string begins."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    lengths = range(min(longest, len(text)), 0, -1)
    return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in stops)), 0)


def _tail(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[int]:
    """The last of these tokens, beginning at the start of a character."""
    for size in range(CONTEXT, CONTEXT + 4):
        if not tokenizer.decode(tokens[-size:]).startswith(BROKEN):
            return list(tokens[-size:])
    return list(tokens[-CONTEXT:])


def _token_text(name: str, where: Path, *objects: dict[str, object]) -> str | None:
    """A special token's text, in the first of `objects` that has it. Raises ConfigError naming the file `where`."""
    token = next((fields[name] for fields in objects if fields.get(name) is not None), None)
    if isinstance(token, dict):
        token = cast("dict[str, object]", token).get("content")
    if token is not None and not isinstance(token, str):
        raise ConfigError(f"{where}: {name} is {token!r}; it must be a string")
    return token


def _flag(name: str, where: Path, config: dict[str, object]) -> bool | None:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise ConfigError(f"{where}: {name} is {value!r}; it must be true or false")
    return value
