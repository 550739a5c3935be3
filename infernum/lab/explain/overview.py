"""A bundle at a glance: every block before and after its rules, and what each rule did."""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text

from infernum.bundle import Bundle
from infernum.lab.explain.amounts import microseconds, nbytes
from infernum.lab.explain.block import BlockExplanation, explain_block
from infernum.lab.explain.facts import Amount, total
from infernum.lab.explain.history import explain_rule
from infernum.lab.explain.names import rule_names
from infernum.lab.explain.paper import heading, paragraph, table
from infernum.manifest import every_variant
from infernum.roofline import CONTEXT, gpu_of


@dataclass(frozen=True)
class BlockSummary:
    """One block for one class of steps, at `tokens` tokens."""

    block: str
    variant: str
    tokens: int
    before: Amount
    after: Amount


@dataclass(frozen=True)
class RuleSummary:
    """How often a rule fired and was refused, all blocks and variants together."""

    name: str
    enabled: bool
    fired: int
    refused: int


@dataclass(frozen=True)
class Overview:
    """The whole bundle; `steps` are whole steps of the model, every block as often as it is applied, but no sampler."""

    folder: str
    model: str
    arch: str
    dtype: str
    gpu: str
    context: int
    ranks: int
    blocks: list[BlockSummary]
    steps: list[BlockSummary]
    rules: list[RuleSummary]


def explain_bundle(
    bundle: Bundle, *, variant: str | None = None, tokens: int | None = None, context: int = CONTEXT
) -> Overview:
    """Every block and rule of a bundle, or of one class of steps."""
    manifest = bundle.manifest
    variants = [v for v in every_variant(manifest) if v.serves(variant)]
    blocks = [explain_block(bundle, v, tokens=tokens, context=context) for v in variants]
    rules = [explain_rule(bundle, name, variants) for name in rule_names(bundle)]
    return Overview(
        folder=str(bundle.folder),
        model=manifest.model.name,
        arch=bundle.arch,
        dtype=manifest.dtype,
        gpu=gpu_of(bundle.arch).name,
        context=context,
        ranks=manifest.ranks,
        blocks=[BlockSummary(b.block, b.variant, b.tokens, b.before, b.after) for b in blocks],
        steps=[
            _step(name, [b for b in blocks if b.variant == name])
            for name in dict.fromkeys(b.variant for b in blocks if b.layers)
        ],
        rules=[RuleSummary(r.name, r.enabled, r.firings, r.refusals) for r in rules],
    )


def _step(variant: str, blocks: list[BlockExplanation]) -> BlockSummary:
    """A step of the whole model."""
    before = total(block.before for block in blocks for _ in range(block.layers))
    after = total(block.after for block in blocks for _ in range(block.layers))
    return BlockSummary("whole step", variant, blocks[0].tokens, before, after)


def overview_text(overview: Overview, width: int) -> list[Text]:
    """The bundle in two tables, and commands to run next."""
    title = Text().append(overview.model, style="bold cyan")
    rank = "" if overview.ranks == 1 else f" one of {overview.ranks} ranks,"
    title.append(f"  {overview.dtype}, {overview.arch},{rank} in {overview.folder}", style="dim")
    header = ("block", "variant", "kernels", "", "", "bytes", "", "", "floor", "", "")
    rows = [header, *(_row(block) for block in (*overview.blocks, *overview.steps))]
    sizes = ", ".join(map(str, sorted({block.tokens for block in overview.blocks})))
    step = f"in a step of {sizes} tokens, context {overview.context}, on one {overview.gpu}"
    lines = [title, heading("Blocks, before → after"), *paragraph(step, width, style="dim")]
    lines += table(rows, right=(2, 4, 5, 7, 8, 10))
    rules = [("rule", "fired", "refused", "")]
    rules += [
        (r.name, str(r.fired), str(r.refused), "" if r.enabled else "not enabled in this bundle")
        for r in overview.rules
    ]
    return [*lines, heading("Rules"), *table(rules, right=(1, 2)), heading("Ask next"), *_hints(overview)]


def _row(block: BlockSummary) -> tuple[str, ...]:
    before, after = block.before, block.after
    return (
        block.block,
        block.variant,
        *(str(before.kernels), "→", str(after.kernels)),
        *(nbytes(before.bytes), "→", nbytes(after.bytes)),
        *(microseconds(before.floor_us), "→", microseconds(after.floor_us)),
    )


def _hints(overview: Overview) -> list[Text]:
    """Questions about the block that changed most and the rule that was refused most."""
    most = max(overview.blocks, key=lambda b: b.before.kernels - b.after.kernels)
    refused = max(overview.rules, key=lambda r: r.refused)
    asks = [f"infernum explain {overview.folder} {most.block} --variant {most.variant}"]
    asks += [f"infernum explain {overview.folder} rule:{refused.name}"] if refused.refused else []
    return [Text(f"  {ask}", style="green") for ask in asks]
