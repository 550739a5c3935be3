"""`infernum verify`: whether kernels and rules do what they stand for."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infernum.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infernum.bundle import Bundle
    from infernum.lab.verify.check import Verdict
    from infernum.lab.verify.rule_verdict import RuleVerdict
    from infernum.lab.verify.units import Unit
    from infernum.opening import Progress

WRONG = 1
"""The exit code when some kernel or rule is wrong."""


@click.command("verify", short_help="Check every kernel and rule of a bundle against NumPy.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--kernel", help="Only this kernel, and the rules that produced it.")
@click.option("--rule", help="Only this rule, and the kernels that it produced.")
@click.option("--block", help="Only kernels of this block.")
@click.option("--variant", help="Only kernels of this variant, a class of token counts, such as t1.")
@options.plugin
@options.as_json
@options.verbose
def command(
    bundle: Path, kernel: str | None, rule: str | None, block: str | None, variant: str | None, as_json: bool
) -> int:
    """Check every kernel and rule of BUNDLE against NumPy.

    On a GPU, every kernel runs on shapes and values that expose mistakes, and every fused kernel is compared with the
    kernels of its ops. With or without a GPU, every rule is checked on the bundle's graphs and on random graphs; so are
    the rules of plugins that the bundle was compiled without.

    The exit code is 1 when something is wrong. In JSON, an error that is no number (NaNs, another type) is null.
    """
    from infernum.bundle import open_kernels
    from infernum.cli.console import print_json, progress_bar, say
    from infernum.lab.verify.rules import verify_rules
    from infernum.lab.verify.verdict import select_units
    from infernum.runtime.driver import gpu_available

    opened = open_kernels(bundle)
    kernels = None if kernel is None else [kernel]
    # a name that the bundle does not have is an error without a GPU too
    units = select_units(opened, kernels=kernels, block=block, variant=variant, rule=rule)
    names = None if rule is None else [rule]
    if rule is None and any(name is not None for name in (kernel, block, variant)):
        names = sorted({name for unit in units for name in unit.rules})
    has_gpu = gpu_available()
    if not has_gpu:
        say("note: there is no GPU, so kernels were not run; rules are checked in NumPy", err=True)
    if opened.manifest.ranks > 1:
        say("note: kernels that exchange words with other ranks are left out", err=True)
    with progress_bar() as progress:
        gpu, verdicts = _verify_kernels(opened, units, progress) if has_gpu else (None, None)
        rules = [] if names == [] else verify_rules(opened, names, progress)
    if not opened.manifest.rules:
        say(f"note: {bundle} was compiled without any rule, so there is none of its own to check", err=True)
    ok = all(verdict.ok for verdict in (*(verdicts or ()), *rules))
    if as_json:
        print_json(_as_json(opened, gpu, verdicts, rules, ok))
    else:
        _print(opened, gpu, verdicts, rules)
    return 0 if ok else WRONG


def _verify_kernels(
    bundle: Bundle, units: Sequence[Unit], progress: Progress | None
) -> tuple[str, list[Verdict]]:
    """The GPU's name, and the verdicts on the kernels of the units."""
    from infernum.lab.verify.bench import open_bench
    from infernum.lab.verify.verdict import verify_units

    with open_bench() as bench:
        return bench.device.facts.name, verify_units(bundle, bench, units, progress=progress)


def _as_json(
    bundle: Bundle, gpu: str | None, kernels: list[Verdict] | None, rules: list[RuleVerdict], ok: bool
) -> dict[str, Any]:
    from dataclasses import asdict

    def record(verdict: Verdict | RuleVerdict) -> dict[str, Any]:
        fields = asdict(verdict) | {"ok": verdict.ok}
        infinite = [
            name for name, value in fields.items() if isinstance(value, float) and not isfinite(value)
        ]
        return fields | dict.fromkeys(infinite)  # JSON has no infinity

    return {
        "bundle": str(bundle.folder),
        "model": bundle.manifest.model.name,
        "arch": bundle.arch,
        "gpu": gpu,
        "ok": ok,
        "kernels": None if kernels is None else [record(v) | {"speed_up": v.speed_up} for v in kernels],
        "rules": [record(verdict) for verdict in rules],
    }


def _print(bundle: Bundle, gpu: str | None, kernels: list[Verdict] | None, rules: list[RuleVerdict]) -> None:
    from infernum.cli.console import print_table, say

    if kernels:
        columns = ("block", "kernel", "ops", "error", "of tolerance", "decomposed", "speed-up", "")
        rows = [_kernel_row(verdict) for verdict in kernels]
        print_table(f"{bundle.folder}: kernels on {gpu}", columns, rows, numbers=columns[3:7])
    if rules:
        columns = ("rule", "places", "graphs", "error", "of tolerance", "")
        rows = [(v.rule, v.sites, v.graphs, *_error(v.worst_error, v.tolerance), _word(v)) for v in rules]
        print_table(f"{bundle.folder}: rules in NumPy", columns, rows, numbers=columns[1:5])
    if any(verdict.in_cache for verdict in kernels or ()):
        say("~ operands so small that both were timed out of the L2 cache")
    for verdict in kernels or ():
        name = f"{verdict.block}.{verdict.variant} {verdict.kernel}"
        if verdict.note:
            say(f"{name}: {verdict.note}")
        for sentence in verdict.wrong:
            say(f"{name} is wrong: {sentence}")
    for rule in rules:
        if not rule.in_bundle:
            say(f"{rule.rule} is not in this bundle: no kernel of it was made by this rule")
        for sentence in rule.wrong:
            say(f"{rule.rule} is wrong: {sentence}")


def _kernel_row(verdict: Verdict) -> tuple[object, ...]:
    cached = "~" if verdict.in_cache else ""
    return (
        f"{verdict.block}.{verdict.variant}",
        f"{verdict.kernel} (edited)" if verdict.edited else verdict.kernel,
        ", ".join(verdict.ops),
        *_error(verdict.error, verdict.tolerance),
        "" if verdict.decomposed_error is None else _number(verdict.decomposed_error),
        "" if verdict.speed_up is None else f"{cached}{verdict.speed_up:.2f} ×",
        "ok" if verdict.ok else "WRONG",
    )


def _error(error: float, tolerance: float) -> tuple[str, str]:
    """An error, and its share of the tolerance; exact results have no tolerance."""
    if not tolerance or not isfinite(error):
        return _number(error), ""
    share = error / tolerance
    times = "> 1000 ×" if share > 1000 else f"{share:.0f} ×"
    return _number(error), times if share > 10 else f"{share:.0%}"


def _number(error: float) -> str:
    if error == float("inf"):
        return "wrong"
    return "0" if error == 0 else f"{error:.1e}"


def _word(verdict: RuleVerdict) -> str:
    word = "ok" if verdict.ok else "WRONG"
    return word if verdict.in_bundle else f"{word}, not in this bundle"
