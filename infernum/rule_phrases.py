"""The words for what a rule did: of rules.txt, the log, --dump-passes, explain and diff."""

from __future__ import annotations

TO, TO_ASCII = " → ", " -> "
"""What stands between removed and new calls: on a terminal, and in files and logs."""


def replacement(removed: str, new: str, to: str = TO_ASCII) -> str:
    """One firing: the calls that a rule removed, and those in their place."""
    return f"{removed}{to}{new}"


def refusal(at: str, reason: str) -> str:
    """One refusal: the calls that a rule matched, and why it left them as they are."""
    return f"{at}: {reason}"


def fired(count: int) -> str:
    """How often a rule fired, in files."""
    return f"fired {count} time(s)"


def node_names(text: str) -> list[str]:
    """The nodes of a firing or a refusal, whose records hold them with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]
