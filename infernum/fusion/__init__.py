"""The rules, in the order they are applied."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TypeVar

from infernum import renamed
from infernum.errors import CompileError
from infernum.fusion.attention import attend, rope_append
from infernum.fusion.hosts import into_epilogue, into_library, into_norm, into_prologue
from infernum.fusion.pointwise import merge_pointwise
from infernum.fusion.products import merge_products
from infernum.ir.rewrite import Rule

AnyRule = TypeVar("AnyRule", bound=Rule)

RULES: list[Rule] = [
    merge_products,
    attend,
    rope_append,
    into_epilogue,
    into_prologue,
    into_norm,
    into_library,
    merge_pointwise,
]
"""Merges come first, so that what follows sees merged products; then what kernels absorb; then what is left."""


def add_rule(rule: AnyRule, *, before: str = "merge_pointwise") -> AnyRule:
    """Add a rule to those that are applied, ahead of the rule named `before`; also usable as a decorator.

    The default leaves nothing that a rule wants to the merging of pointwise ops. Raises CompileError.
    """
    lacking = [member for member in ("name", "why", "examples", "at") if not hasattr(rule, member)]
    if lacking:
        raise CompileError(
            f"rule {getattr(rule, 'name', type(rule).__name__)} has no {' and no '.join(lacking)}; a rule has name, "
            "why, examples, and at(graph, node, target), which takes the place of candidates(graph, target)"
        )
    names = [known.name for known in RULES]
    if rule.name in names:
        raise CompileError(f"a rule named {rule.name!r} exists already; choose another name")
    RULES.insert(names.index(find_rule(before).name), rule)
    return rule


def find_rule(name: str) -> Rule:
    """The rule of that name. Raises CompileError naming the rule that does its work now, or one of a similar name."""
    known = {rule.name: rule for rule in RULES}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the rules are {', '.join(known)}"
        hint = f"{renamed.RULES[name]} does its work" if name in renamed.RULES else hint
        raise CompileError(f"no rule is called {name!r}; {hint}")
    return known[name]


def select_rules(fuse: bool, changes: Sequence[str] = ()) -> list[Rule]:
    """The rules to apply: all of them or none, then `+name` and `-name` in turn. Raises CompileError."""
    chosen = {rule.name for rule in RULES} if fuse else set[str]()
    for change in changes:
        sign, name = change[:1], change[1:]
        if sign not in ("+", "-"):
            raise CompileError(f"--rules: {change!r} should be +name or -name")
        try:
            find_rule(name)
        except CompileError as error:
            raise CompileError(f"--rules: {error}") from error
        chosen = chosen | {name} if sign == "+" else chosen - {name}
    return [rule for rule in RULES if rule.name in chosen]
