"""Rotary position embedding: the frequency that turns each pair of a head's elements, and its scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infernum.errors import ConfigError

KINDS = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Rope:
    """The rotary embedding of one model.

    kind                    "default": unscaled (Su et al. 2021, arXiv 2104.09864)
                            "linear": every frequency divided by `factor` (Chen et al. 2023, arXiv 2306.15595)
                            "llama3": low frequencies divided by `factor`, high ones kept, the rest blended
    theta                   base of the geometric series of frequencies
    low_freq_factor,        llama3: wavelengths above original_max_position / low_freq_factor are stretched,
    high_freq_factor        those below original_max_position / high_freq_factor are kept
    original_max_position   llama3: the context, in tokens, that the model was first trained with

    Raises ConfigError for an unknown kind or numbers that give no frequencies.
    """

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"rope kind {self.kind!r} is not supported; these are: {', '.join(KINDS)}")
        for name in ("theta", "factor", "low_freq_factor", "high_freq_factor"):
            value: float = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"rope {name} is {value}; it must be a positive number")
        if self.kind != "llama3":
            return
        if self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(
                f"rope high_freq_factor {self.high_freq_factor} must be greater than"
                f" low_freq_factor {self.low_freq_factor}"
            )
        if self.original_max_position <= 0:
            raise ConfigError(
                f"rope original_max_position is {self.original_max_position}; llama3 scaling needs the"
                " positions of the first training (original_max_position_embeddings)"
            )

    def inv_freq(self, head_dim: int) -> NDArray[np.float32]:
        """Radians per position for each pair of elements, float32 [head_dim / 2].

        The order of the float32 operations is that of transformers, modeling_rope_utils.py
        (`_compute_default_…`, `_compute_linear_scaling_rope_parameters`, `_compute_llama3_parameters`).
        Only the power is computed in float64 and rounded once: float32 powers differ in the last bit from one
        machine to the next, and the same model must give the same frequencies everywhere.
        """
        assert head_dim > 0 and head_dim % 2 == 0, "rope turns pairs: head_dim is even"
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
        powers = np.float64(np.float32(self.theta)) ** exponents.astype(np.float64)
        inv_freq = 1.0 / powers.astype(np.float32)
        match self.kind:
            case "linear":
                return inv_freq / self.factor
            case "llama3":
                return self._stretch_low(inv_freq)
            case _:
                return inv_freq

    def _stretch_low(self, inv_freq: NDArray[np.float32]) -> NDArray[np.float32]:
        """Llama 3.1's scaling of the frequencies, [head_dim / 2] to [head_dim / 2]."""
        longest_kept = self.original_max_position / self.high_freq_factor
        shortest_stretched = self.original_max_position / self.low_freq_factor
        wavelength = 2 * math.pi / inv_freq
        blend = (self.original_max_position / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        blended = (1 - blend) * inv_freq / self.factor + blend * inv_freq
        scaled = np.where(wavelength > shortest_stretched, inv_freq / self.factor, inv_freq)
        between = (wavelength >= longest_kept) & (wavelength <= shortest_stretched)
        return np.where(between, blended, scaled)
