"""The explanation of a rule as a person reads it."""

from __future__ import annotations

from rich.text import Text

from infernum.lab.explain.history import RuleExplanation
from infernum.lab.explain.paper import heading, paragraph
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
    fired = f"Fired {_times(rule.firings)}" if rule.firings else "It fired nowhere in this bundle."
    lines.append(heading(fired))
    for places in rule.fired:
        lines += paragraph(", ".join(places.variants), width, style="green")
        for at in places.at:
            lines += paragraph(replacement(at, places.outcome, TO), width, first="    ")
    if not rule.refusals:
        return [*lines, heading("Refused nowhere: wherever its pattern was found, it fired.")]
    lines.append(heading(f"Refused {_times(rule.refusals)}"))
    for places in rule.refused:
        lines += paragraph(", ".join(places.variants), width, style="yellow")
        text = refusal("; ".join(places.at), places.outcome)
        lines += paragraph(text, width, first="    ", rest="      ")
    return lines


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
