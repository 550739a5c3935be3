"""`infernum explain`: why a block, a kernel or a rule of a bundle is as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from infernum.cli import options

if TYPE_CHECKING:
    from rich.text import Text

    from infernum.bundle import Bundle


@click.command("explain", short_help="Explain how a block, kernel or rule came about.")
@click.argument("bundle", type=options.path)
@click.argument("name", required=False, metavar="[BLOCK|KERNEL|RULE]")
@click.option("--variant", help="Only this variant, a class of token counts, such as t1.")
@click.option("--tokens", type=click.IntRange(min=1), help="Compute costs for a step of this many tokens.")
@click.option(
    "--context",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Compute costs for sequences of this many positions.",
)
@options.plugin
@options.as_json
@options.verbose
def command(
    bundle: Path, name: str | None, variant: str | None, tokens: int | None, context: int, as_json: bool
) -> None:
    """Explain how a block, a kernel or a rule of BUNDLE came about. Without a name, list the names.

    Where a block, a kernel and a rule share a name, write block:NAME, kernel:NAME or rule:NAME.
    """
    import msgspec

    from infernum.bundle import open_kernels
    from infernum.cli.console import print_json, print_lines

    explanation, lines = _explain(open_kernels(bundle), name, variant, tokens, context)
    if as_json:
        print_json(msgspec.to_builtins(explanation))
    else:
        print_lines(lines)


def _explain(
    bundle: Bundle, name: str | None, variant: str | None, tokens: int | None, context: int
) -> tuple[object, list[Text]]:
    """The explanation as data and as text."""
    from rich.text import Text

    from infernum.cli.console import text_width
    from infernum.lab.explain.block import explain_block
    from infernum.lab.explain.block_text import block_text
    from infernum.lab.explain.history import explain_rule
    from infernum.lab.explain.kernel import explain_kernels
    from infernum.lab.explain.kernel_text import kernel_text
    from infernum.lab.explain.names import choose_variant, find
    from infernum.lab.explain.overview import explain_bundle, overview_text
    from infernum.lab.explain.rule_text import rule_text
    from infernum.manifest import every_variant

    width = text_width()
    named = None if name is None else find(bundle, name)
    if named is not None and named.variant is not None and variant not in (None, named.variant):
        raise click.UsageError(f"{name} and --variant {variant} exclude each other: the name has its variant")
    spec = choose_variant(bundle, (named and named.variant) or variant, tokens)
    of_class, tokens = (spec.name, tokens or spec.max_tokens) if spec else (None, tokens)
    if named is None:
        overview = explain_bundle(bundle, variant=of_class, tokens=tokens, context=context)
        return overview, overview_text(overview, width)
    variants = [v for v in every_variant(bundle.manifest) if v.serves(of_class)]
    match named.kind:
        case "rule":
            rule = explain_rule(bundle, named.name, variants)
            return rule, rule_text(rule, width)
        case "kernel":
            kernels = explain_kernels(bundle, named.name, variants, tokens=tokens, context=context)
            parts = [kernel_text(kernel, width) for kernel in kernels]
            explanation = {"kernels": kernels}
        case "block":
            mine = [v for v in variants if v.block == named.name]
            blocks = [explain_block(bundle, v, tokens=tokens, context=context) for v in mine]
            parts = [block_text(block, width) for block in blocks]
            explanation = {"blocks": blocks}
    return explanation, [line for part in parts for line in (*part, Text(""))][:-1]
