"""The explanation of a rule as a person reads it."""

from __future__ import annotations

from rich.text import Text

from infernum.lab.explain.history import RuleExplanation
from infernum.lab.explain.paper import fold, heading, paragraph
from infernum.rule_phrases import TO, refusal, replacement


def rule_text(told: RuleExplanation, width: int) -> list[Text]:
    """Everything about one rule, in `width` columns."""
    lines = [Text().append(told.name, style="bold cyan").append(f"  {told.kind}", style="dim")]
    lines += paragraph(told.why, width)
    if not told.enabled:
        text = f"Not enabled in this bundle: it was compiled with --no-fuse or --rules=-{told.name}."
        return [*lines, *paragraph(text, width, first="", style="bold yellow")]
    if not told.firings and not told.refusals:
        return [*lines, heading("It fired nowhere in this bundle, and its pattern was found nowhere.")]
    lines.append(
        heading(f"Fired {_times(told.firings)}" if told.firings else "It fired nowhere in this bundle.")
    )
    for places in told.fired:
        lines += _places(places.variants, width, "green")
        lines += [
            line
            for at in places.at
            for line in paragraph(replacement(at, places.told, TO), width, first="    ")
        ]
    if not told.refusals:
        return [*lines, heading("Refused nowhere: wherever its pattern was found, it fired.")]
    lines.append(heading(f"Refused {_times(told.refusals)}"))
    for places in told.refused:
        lines += _places(places.variants, width, "yellow")
        ends = "; ".join(places.at)
        lines += [Text(line) for line in fold(refusal(ends, places.told), width, first="    ", rest="      ")]
    return lines


def _places(variants: list[str], width: int, style: str) -> list[Text]:
    return paragraph(", ".join(variants), width, style=style)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
