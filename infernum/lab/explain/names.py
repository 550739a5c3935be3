"""What a name on the command line means: a block, a kernel or a rule of a bundle."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from infernum.bundle import Bundle
from infernum.errors import BundleError
from infernum.fusion import RULES
from infernum.manifest import VariantSpec, every_variant, spec_of, variant_names

Kind = Literal["block", "kernel", "rule"]


@dataclass(frozen=True)
class Named:
    """A block, kernel or rule of a bundle. `variant`: that of a name such as decoder.t1, otherwise None."""

    kind: Kind
    name: str
    variant: str | None = None


def find(bundle: Bundle, text: str) -> Named:
    """The thing that a name stands for. `kernel:rope_append` states the kind.

    Raises BundleError in one line, with near names where it is unknown, with the kinds where it is several things.
    """
    known: dict[Kind, list[str]] = {
        "block": list(bundle.manifest.blocks),
        "kernel": kernel_names(bundle),
        "rule": rule_names(bundle),
    }
    kind, separator, rest = text.partition(":")
    allowed: list[Kind] = [k for k in known if k == kind or not separator]
    name = rest if separator and allowed else text
    kinds: list[Kind] = [k for k in allowed if name in known[k]]
    if len(kinds) > 1:
        ways = " or ".join(f"{k}:{name}" for k in kinds)
        raise BundleError(f"{name} is a {' and a '.join(kinds)} in {bundle.folder}; ask for {ways}")
    if kinds:
        return Named(kinds[0], name)
    block, _, variant = name.partition(".")
    compiled = bundle.manifest.blocks.get(block, {})
    if "block" in allowed and variant and any(v.serves(variant) for v in compiled.values()):
        return Named("block", block, variant)
    every = [n for k in allowed for n in known[k]]
    near = difflib.get_close_matches(name, every, n=3, cutoff=0.5)
    blocks = f"its blocks are {', '.join(known['block'])}"
    hint = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else blocks
    raise BundleError(f"{bundle.folder}: no block, kernel or rule is called {name!r}; {hint}")


def kernel_names(bundle: Bundle) -> list[str]:
    """Every kernel, in order of blocks, each name once."""
    return list(dict.fromkeys(k.name for v in every_variant(bundle.manifest) for k in v.kernels))


def rule_names(bundle: Bundle) -> list[str]:
    """The rules that were tried, then others that are known here."""
    tried = (name for v in every_variant(bundle.manifest) for name in v.fired)
    return list(dict.fromkeys((*bundle.manifest.rules, *tried, *(rule.name for rule in RULES))))


def choose_variant(bundle: Bundle, variant: str | None, tokens: int | None) -> VariantSpec | None:
    """The class of steps with a name, or the one for a number of tokens; None for all. Raises BundleError."""
    manifest = bundle.manifest
    specs = {name: spec_of(manifest.variants, name) for name in variant_names(manifest)}
    if variant is None:
        return None if tokens is None else bundle.variant_for(tokens)
    if variant not in specs:
        near = difflib.get_close_matches(variant, specs, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(specs)}"
        raise BundleError(f"{bundle.folder}: has no variant {variant!r}; {hint}")
    spec = specs[variant]
    if tokens is not None and not spec.min_tokens <= tokens <= spec.max_tokens:
        served = bundle.variant_for(tokens, spec.decodes).name
        raise BundleError(
            f"{variant} serves {spec.min_tokens} to {spec.max_tokens} tokens, not {tokens}; take --variant {served}"
        )
    return spec
