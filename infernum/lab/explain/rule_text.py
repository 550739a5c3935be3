"""The explanation of a rule as a person reads it."""

from __future__ import annotations

from rich.text import Text

from infernum.lab.explain.history import RuleExplanation
from infernum.lab.explain.paper import fold, heading, paragraph
from infernum.rule_phrases import TO, refusal, replacement


def rule_text(rule: RuleExplanation, width: int) -> list[Text]:
    """Everything about one rule, in `width` columns."""
    lines = [Text().append(rule.name, style="bold cyan").append(f"  {rule.kind}", style="dim")]
    lines += paragraph(rule.why, width)
    if not rule.enabled:
        text = f"Not enabled in this bundle: it was compiled with --no-fuse or --rules=-{rule.name}."
        return [*lines, *paragraph(text, width, first="", style="bold yellow")]
    if not rule.firings and not rule.refusals:
        return [*lines, heading("It fired nowhere in this bundle, and its pattern was found nowhere.")]
    lines.append(
        heading(f"Fired {_times(rule.firings)}" if rule.firings else "It fired nowhere in this bundle.")
    )
    for places in rule.fired:
        lines += _places(places.variants, width, "green")
        lines += [
            line
            for at in places.at
            for line in paragraph(replacement(at, places.outcome, TO), width, first="    ")
        ]
    if not rule.refusals:
        return [*lines, heading("Refused nowhere: wherever its pattern was found, it fired.")]
    lines.append(heading(f"Refused {_times(rule.refusals)}"))
    for places in rule.refused:
        lines += _places(places.variants, width, "yellow")
        ends = "; ".join(places.at)
        lines += [
            Text(line) for line in fold(refusal(ends, places.outcome), width, first="    ", rest="      ")
        ]
    return lines


def _places(variants: list[str], width: int, style: str) -> list[Text]:
    return paragraph(", ".join(variants), width, style=style)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
