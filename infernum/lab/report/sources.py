"""Emitted `.cu` files in their parts, each distinct text stored once."""

from __future__ import annotations

from infernum.bundle import SECTION, sections


def parts_of(source: str) -> dict[str, str]:
    """The parts of an emitted file by name: included files and kernels; "" is what comes before them."""
    head, _, _ = ("\n" + source).partition(SECTION)
    return {"": head.strip() + "\n", **sections(source)}


class Texts:
    """Distinct texts, by number."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of a text, which is stored if it is new."""
        if text not in self._numbers:
            self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return self._numbers[text]
