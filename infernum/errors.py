"""The ways a user's request can fail; each prints as one line saying what, where and what to do."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 1000
"""Characters of a line of a message; what a file holds may be any length."""

_DIRECTIONS = (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_VISIBLE = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
    | {0x7F: 0x2421}
    | dict.fromkeys((*range(0x80, 0xA0), *_DIRECTIONS), 0xFFFD)
)
"""A character that a terminal obeys, and the one that is shown in its place."""


def visible(text: str) -> str:
    """`text`, as long as it was, with nothing in it that a terminal obeys but ends of lines and tabs."""
    return text.translate(_VISIBLE)


def shown(message: str) -> str:
    """A message as it is printed: whatever was quoted from a file is visible, and long lines lack their middle."""
    return "\n".join(
        line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} […] {line[-LONGEST // 2 :]}"
        for line in visible(message).split("\n")
    )


class InfernumError(Exception):
    """Base of every mistake a user can mend. The CLI prints its message on one line and exits with code 2."""

    def __str__(self) -> str:
        return shown(super().__str__())


class ShapeError(InfernumError):
    """Shapes that do not fit, found while a block is traced."""


class DTypeError(InfernumError):
    """Element types that do not fit, found while a block is traced."""


class ConfigError(InfernumError):
    """A model's config.json asks for something missing, malformed or not implemented."""


class CheckpointError(InfernumError):
    """A missing, extra, misshapen or unreadable tensor or safetensors file."""


class BundleError(InfernumError):
    """A bundle that is corrupt, of another schema or architecture, or made for another model."""


class CompileError(InfernumError):
    """A rule, template or kernel that cannot be compiled as asked."""


class DeviceError(InfernumError):
    """No GPU, no driver, a missing CUDA library, or too little device memory."""


class RequestError(InfernumError):
    """A prompt or sampling parameter that cannot be served."""


class LogitsError(InfernumError):
    """Logits by which no token can be drawn: NaN or +∞ among them, or nothing above −∞.

    sequences  the numbers of the sequences that have ended by it
    dtype      the short name of the type that the model computes in
    """

    def __init__(self, sequences: Sequence[int], dtype: str) -> None:
        self.sequences = tuple(sequences)
        self.dtype = dtype
        super().__init__(
            f"{_listed(self.sequences)}: no token can be drawn, since its logits are not finite; {_REMEDIES[dtype]}"
        )


_REMEDIES = {
    "f16": "float16 holds no number above 65504, so use bfloat16 or float32 (--dtype)",
    "bf16": "they were computed in bfloat16: use float32 (--dtype), or look for NaN in the checkpoint",
    "f32": "they were computed in float32: look for NaN or infinity in the checkpoint",
}


def _listed(sequences: tuple[int, ...]) -> str:
    *others, last = map(str, sequences)
    return f"sequences {', '.join(others)} and {last}" if others else f"sequence {last}"
