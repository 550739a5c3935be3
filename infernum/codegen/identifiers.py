"""C identifiers for the values of a kernel's body: their names in the graph, unless these mean something else there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from infernum.codegen.templates import source_of
from infernum.dtypes import DTYPES

_JINJA = re.compile(r"\{[{%#].*?[}%#]\}|//[^\n]*", re.DOTALL)
_PLACEHOLDER = re.compile(r"\{\w+\}")
_WORD = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
_DERIVED = re.compile(r"((part|whole)_\d+|out(_\w+)?|__\w+)$")
"""What templates and slots call the values that they compute, and names that are kept for compilers."""

_OF_SLOTS = frozenset(("round_to", *(dtype.cuda for dtype in DTYPES.values())))
"""What code in a slot is made of besides the ops' expressions."""

_KEYWORDS = frozenset(
    """
    alignas alignof and asm auto bool break case catch char char8_t char16_t char32_t class concept const const_cast
    consteval constexpr constinit continue co_await co_return co_yield decltype default delete do double dynamic_cast
    else enum explicit export extern false float for friend goto if inline int long main mutable namespace new noexcept
    not nullptr operator or private protected public register reinterpret_cast requires return short signed sizeof
    static static_assert static_cast struct switch template this thread_local throw true try typedef typeid typename
    union unsigned using virtual void volatile wchar_t while xor NULL
    """.split()  # noqa: SIM905 (a list would take eighty lines)
)


def identifiers(template: str, arch: int, names: Iterable[str], code: Iterable[str]) -> Mapping[str, str]:
    """An identifier for each of `names` in a kernel of a template, into which the expressions `code` are put.

    It is the name itself unless the template, the code or C++ use that already.
    """
    text = " ".join(
        (_JINJA.sub(" ", source_of(template, arch=arch)), *(_PLACEHOLDER.sub(" ", each) for each in code))
    )
    in_use = set(_WORD.findall(text)) | _KEYWORDS | _OF_SLOTS
    chosen: dict[str, str] = {}
    for name in dict.fromkeys(names):
        identifier = f"in_{name}" if _DERIVED.match(name) else name
        while identifier in in_use:
            identifier += "_"
        chosen[name] = identifier
        in_use |= {identifier, f"{identifier}_value", f"{identifier}_values"}
    return chosen
