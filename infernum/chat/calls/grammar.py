"""The grammar of an answer that must call functions, in the Lark dialect of llguidance."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from infernum.chat.reader import AnswerForm
from infernum.chat.reasoning import CLOSING, OPENING

SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""The white space of arguments, as chat templates write them."""


def call_grammar(
    form: AnswerForm, functions: Mapping[str, Mapping[str, Any]], token_of: Callable[[str], int | None]
) -> str:
    """The grammar of answers in a form, which call some of these functions, or one of them with `form.one_call`.

    functions  the JSON schemas of the arguments, by name
    token_of   the id of the token that is this mark, if there is one; llguidance knows such a mark by its id only
    """
    assert form.calls is not None, "there is a syntax of calls"
    writing = form.calls.writing
    spell = _Speller((*form.calls.special, OPENING, CLOSING), token_of)
    more = "" if form.one_call else f"({spell(writing.separator)} call)*"
    rules = [
        "%llguidance {}",
        f"start: {_thought(form)} {spell(writing.opening)} call {more} {spell(writing.closing)}",
        f"call: {' | '.join(f'call_{number}' for number in range(len(functions)))}",
    ]
    for number, (name, schema) in enumerate(functions.items()):
        front = spell(writing.before + json.dumps(name, ensure_ascii=False) + writing.between)
        arguments = json.dumps({**schema, "type": "object", "x-guidance": SPACING})
        rules += [
            f"call_{number}: {front} arguments_{number} {spell(writing.after)}",
            f"arguments_{number}: %json {arguments}",
        ]
    if form.reasons:
        rules += _thinking(spell, token_of(CLOSING) is not None)
    return "\n".join(rules)


def _thought(form: AnswerForm) -> str:
    """The reasoning in front of the calls."""
    return "" if not form.reasons else "thinking" if form.opened else "thought?"


def _thinking(spell: _Speller, by_token: bool) -> list[str]:
    """The rules of reasoning: any text up to the mark that ends it."""
    return [
        f"thought: {spell(OPENING)} thinking",
        f"thinking: TEXT {spell(CLOSING)} SPACE" if by_token else "thinking: closed SPACE",
        f"closed[lazy]: TEXT {spell(CLOSING)}",
        "TEXT: /(.|\\n)*/",
        "SPACE: /\\n{0,2}/",
    ]


class _Speller:
    """Spells text as a grammar does: marks that are tokens by their ids, and all else between quotes."""

    def __init__(self, marks: tuple[str, ...], token_of: Callable[[str], int | None]) -> None:
        self._tokens = {mark: token for mark in marks if (token := token_of(mark)) is not None}
        self._mark = re.compile(f"({'|'.join(map(re.escape, self._tokens)) or '(?!)'})")

    def __call__(self, text: str) -> str:
        pieces = [piece for piece in self._mark.split(text) if piece]
        return " ".join(
            f"<[{self._tokens[piece]}]>" if piece in self._tokens else json.dumps(piece) for piece in pieces
        )
