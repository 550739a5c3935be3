"""The grammar of an answer with reasoning, calls and a form of its own, in llguidance's notation: Lark, or JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from infernum.chat.reader import AnswerForm
from infernum.chat.reasoning import CLOSING, OPENING

SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""The white space of arguments, as chat templates write them."""


@dataclass(frozen=True)
class CalledSchema:
    """A function: its name, and the JSON schema of its arguments. What cannot be enforced is left out if `lenient`."""

    name: str
    schema: dict[str, Any]
    lenient: bool = True


def answer_grammar(
    form: AnswerForm,
    token_of: Callable[[str], int | None],
    functions: Sequence[CalledSchema] = (),
    answer: str | None = None,
) -> str:
    """The grammar of answers in a form, which call these functions or follow the grammar `answer`, where it is given.

    A model that reasons may do so first. With `form.one_call` an answer has one call at most.

    token_of  the id of the token that is this mark, if there is one; llguidance knows such a mark by its id only
    """
    marks = (*(form.calls.special if form.calls else ()), OPENING, CLOSING)
    literal = _Literals(marks, token_of)
    ways = ["calls"] * bool(functions) + ["@answer"] * (answer is not None)
    thought = "" if not form.reasons else "thinking" if form.opened else "thought?"
    rules = ["%llguidance {}", f"start: {thought} ({' | '.join(ways)})"]
    if functions:
        rules += _calls(form, functions, literal)
    if form.reasons:
        rules += _thinking(literal, token_of(CLOSING) is not None)
    lark = "\n".join(rules)
    if answer is None:
        return lark
    parts = json.loads(answer)["grammars"] if answer.startswith("{") else [{"lark_grammar": answer}]
    return json.dumps(
        {"grammars": [{"name": "start", "lark_grammar": lark}, {**parts[0], "name": "answer"}, *parts[1:]]}
    )


def _calls(form: AnswerForm, functions: Sequence[CalledSchema], literal: _Literals) -> list[str]:
    """The rules of calls. Each schema is a grammar of its own, because references in it start from its root."""
    assert form.calls is not None, "there is a syntax of calls"
    writing = form.calls.writing
    more = "" if form.one_call else f"({literal(writing.separator)} call)*"
    rules = [
        f"calls: {literal(writing.opening)} call {more} {literal(writing.closing)}",
        f"call: {' | '.join(f'call_{number}' for number in range(len(functions)))}",
    ]
    for number, function in enumerate(functions):
        front = literal(writing.before + json.dumps(function.name, ensure_ascii=False) + writing.between)
        options = {**SPACING, "lenient": function.lenient}
        arguments = json.dumps({**function.schema, "type": "object", "x-guidance": options})
        rules += [
            f"call_{number}: {front} arguments_{number} {literal(writing.after)}",
            f"arguments_{number}: %json {arguments}",
        ]
    return rules


def _thinking(literal: _Literals, by_token: bool) -> list[str]:
    """The rules of reasoning: any text up to the mark that ends it."""
    return [
        f"thought: {literal(OPENING)} thinking",
        f"thinking: TEXT {literal(CLOSING)} SPACE" if by_token else "thinking: closed SPACE",
        f"closed[lazy]: TEXT {literal(CLOSING)}",
        "TEXT: /(.|\\n)*/",
        "SPACE: /\\n{0,2}/",
    ]


class _Literals:
    """Spells text as a grammar does: marks that are tokens by their ids, and all else between quotes."""

    def __init__(self, marks: tuple[str, ...], token_of: Callable[[str], int | None]) -> None:
        self._tokens = {mark: token for mark in marks if (token := token_of(mark)) is not None}
        self._mark = re.compile(f"({'|'.join(map(re.escape, self._tokens)) or '(?!)'})")

    def __call__(self, text: str) -> str:
        pieces = [piece for piece in self._mark.split(text) if piece]
        return " ".join(
            f"<[{self._tokens[piece]}]>" if piece in self._tokens else json.dumps(piece) for piece in pieces
        )
