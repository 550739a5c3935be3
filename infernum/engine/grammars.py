"""Grammars over the tokens of a model, by llguidance: which tokens may follow an output.

A grammar is a text that `LLMatcher` reads: a grammar in Lark's notation, or JSON that holds schemas and such grammars.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from collections.abc import Sequence as Ordered
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from infernum.engine.sequence import MakeMask, Mask
from infernum.engine.table_rows import bits_of
from infernum.errors import RequestError
from infernum.grammar import Grammar
from infernum.step import Int32

RECENT = 64
"""Compiled grammars that are ready for the next request with the same text."""

LIMITS = LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=50_000,
    step_max_items=3_000,
    max_items_in_row=600,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
"""What a grammar may take: when it is compiled, for each token, and in memory.

An optional property takes four items of a row, as long as it may still come: an object may have about 150 of them.
"""

FIRST_TOKENS = 4
"""Tokens whose masks are computed when a grammar is checked: some fail only there."""


class GrammarMask:
    """A `Mask` (`infernum.engine.sequence`): the tokens by which an output goes on as its grammar wants.

    The tokens that end a sequence are among them exactly when the grammar accepts the output. After an error there are
    none, and `error` says why.
    """

    def __init__(self, matcher: LLMatcher, words: int, ends: Int32) -> None:
        self._matcher = matcher
        self._ends = ends
        self._output = np.empty(0, np.int32)
        self._bits = np.empty(words, np.int32)
        self._is_ready = False

    @property
    def error(self) -> str | None:
        """Why the output cannot go on."""
        return sentence(self._matcher.get_error()) or None

    def __call__(self, output: Int32) -> Int32:
        """The tokens that may follow an output (`Mask`)."""
        if output is self._output and self._is_ready:
            return self._bits
        matcher = self.follow(output)
        if not self._is_ready:
            bits = np.zeros_like(self._bits)
            matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
            self.take(bits)
        return self._bits

    def follow(self, output: Int32) -> LLMatcher:
        """The matcher, which has read an output."""
        read = len(self._output)
        if self._output.tobytes() != output[:read].tobytes():  # quicker than array_equal
            self._matcher.reset()
            read, self._is_ready = 0, False
        if read < len(output):
            self._matcher.consume_tokens(output[read:].tolist())
            self._is_ready = False
        self._output = output
        return self._matcher

    def take(self, bits: Int32) -> None:
        """Take what the matcher has computed for the output that it has read."""
        if self._matcher.is_error():
            bits[:] = 0
        elif self._matcher.is_accepting():
            bits |= self._ends
        self._bits, self._is_ready = bits, True


class Grammars:
    """Compiles the grammars of one model, by its tokenizer.json, and computes masks on all cores.

    vocab  tokens of the model, which may be more than those of the tokenizer
    ends   tokens that end every sequence
    """

    def __init__(self, tokenizer: Path, vocab: int, ends: Collection[int] = ()) -> None:
        self._path = tokenizer
        self._vocab = vocab
        self._ends = sorted(ends)
        self._recent = lru_cache(maxsize=RECENT)(self._compiled)

    @cached_property
    def tokenizer(self) -> LLTokenizer:
        """The tokens by their bytes. Raises RequestError where llguidance cannot read the tokenizer."""
        try:
            text = self._path.read_text(encoding="utf-8")
            return LLTokenizer(text, n_vocab=self._vocab, eos_token=self._ends or None)
        except (OSError, ValueError) as error:
            raise RequestError(f"{self._path}: grammars cannot use it ({sentence(str(error))})") from error

    @cached_property
    def _executor(self) -> LLExecutor:
        return LLExecutor()

    def check(self, grammar: str) -> None:
        """Raises RequestError for a grammar that is none, that no text follows, or that fails with its first tokens."""
        matcher = self.matcher(grammar)
        for _ in range(FIRST_TOKENS):
            allowed = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            if matcher.is_error():
                raise RequestError(sentence(matcher.get_error()))
            byte = int(allowed.argmax())
            if matcher.is_stopped() or not allowed[byte]:
                return
            matcher.consume_token(8 * byte + int(allowed[byte]).bit_length() - 1)

    def matcher(self, grammar: str) -> LLMatcher:
        """A matcher of a grammar that has read nothing. Raises RequestError with llguidance's sentence."""
        return self._recent(grammar).deep_copy()

    def mask(self, grammar: str, stops: Iterable[int] = ()) -> GrammarMask:
        """The mask of a new sequence, which the tokens `stops` end too. Raises RequestError."""
        ends = {*self._ends, *stops}
        if not ends:
            raise RequestError("this model has no token that ends an answer; a grammar needs stop_token_ids")
        matcher = self.matcher(grammar)
        is_end = np.zeros(self._vocab, np.bool_)
        is_end[list(ends)] = True
        bits = bits_of(is_end)
        return GrammarMask(matcher, len(bits), bits)

    def maker(self, grammar: Grammar, stops: Iterable[int] = ()) -> MakeMask:
        """What makes the masks of sequences, which the tokens `stops` end too. Raises RequestError."""
        ends = tuple(stops)
        try:
            text = text_of(grammar)
            self.check(text)
            self.mask(text, ends)
        except RequestError as error:
            raise RequestError(f"the grammar cannot be used: {error}") from error
        except RecursionError as error:
            raise RequestError("the grammar is nested too deeply") from error
        return lambda: self.mask(text, ends)

    def prepare(self, masks: Ordered[tuple[Mask, Int32]]) -> None:
        """Compute the masks of a step at once, each for the output beside it."""
        own = [(mask, output) for mask, output in masks if isinstance(mask, GrammarMask)]
        if len(own) < 2:
            return  # a mask alone is computed when it is called
        bits = np.zeros((len(own), -(-self._vocab // 32)), np.int32)
        matchers = [(mask.follow(output), row) for row, (mask, output) in enumerate(own)]
        self._executor.unsafe_compute_mask_ptr(matchers, bits.ctypes.data, bits.strides[0], len(own))
        for (mask, _), row in zip(own, bits, strict=True):
            mask.take(row)

    def _compiled(self, grammar: str) -> LLMatcher:
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise RequestError(sentence(matcher.get_error()))
        return matcher


def text_of(grammar: Grammar) -> str:
    """A grammar as `Grammars` takes it. Raises RequestError with llguidance's sentence."""
    text = grammar.text
    try:
        match grammar.kind:
            case "json_schema":
                options: Any = dict(grammar.options)
                return LLMatcher.grammar_from_json_schema(text, overrides=options)
            case "regex":
                return LLMatcher.grammar_from_regex(text)
            case "choice":
                return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, json.loads(text))))
            case "grammar":
                return LLMatcher.grammar_from_lark(any_to_lark(text))
            case "llguidance":
                return text
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # GBNF is read by code that raises what it likes
        raise RequestError(sentence(str(error))) from error


_STOPS = {
    "NoExtension": "no text follows",
    "NoExtensionBias": "no text follows",
    "ParserTooComplex": "it is too complex for its parser",
    "LexerTooComplex": "its regular expressions are too complex",
}
"""What llguidance calls the ends of a parser, in words."""


def sentence(error: str) -> str:
    """What llguidance says, on one line."""
    text = " ".join(error.replace("<non-verbose/>", " ").split())
    return _STOPS.get(text, text)
