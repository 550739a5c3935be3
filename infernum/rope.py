"""Rotary position embedding: how far each pair of a head's elements turns per position, and which elements pair up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from infernum.errors import ConfigError

Frequencies = NDArray[np.float32]

KINDS = ("default", "linear", "llama3", "yarn", "longrope", "proportional")


@dataclass(frozen=True, repr=False)
class Rope:
    """The rotary embedding of one kind of layers of a model.

    kind                    "default": unscaled (Su et al. 2021, arXiv 2104.09864)
                            "linear": every frequency divided by `factor` (Chen et al. 2023, arXiv 2306.15595)
                            "llama3": low frequencies divided by `factor`, high ones kept, the rest blended
                            "yarn": the same by a ramp over the pairs (Peng et al. 2023, arXiv 2309.00071)
                            "longrope": every frequency divided by a number of its own, of which there is a list for
                            short sequences and one for long ones (Ding et al. 2024, arXiv 2402.13753)
                            "proportional": the pairs beyond `partial` stay as they are, and frequencies divide by
                            `factor`; halves of the whole head pair up (Gemma 4)
    theta                   base of the geometric series of frequencies
    low_freq_factor,        llama3: wavelengths above original_max_position / low_freq_factor are stretched,
    high_freq_factor        those below original_max_position / high_freq_factor are kept
    original_max_position   the context, in tokens, that the model was first trained with: llama3, yarn, longrope (whose
                            long sequences are longer) and beta need it
    attention_factor        factor of cosines and sines
    partial                 the part of a head that is turned, its first elements; the others stay as they are
    interleaved             elements 2i and 2i + 1 are pair i; else elements i and i + rotary / 2
    beta_fast, beta_slow    yarn: pairs that turn beta_fast times or more in the original context are kept, those that
                            turn beta_slow times or less are divided by `factor`
    truncate                yarn: the ends of the ramp are whole numbers of pairs
    short_factor,           longrope: divisors of the frequencies, one for each pair that is turned
    long_factor
    beta                    a turned head at position p is multiplied by 1 + beta · ln(1 + ⌊p / original_max_position⌋);
                            queries only: see `of_keys`

    Raises ConfigError for an unknown kind or numbers that give no frequencies.
    """

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 0
    attention_factor: float = 1.0
    partial: float = 1.0
    interleaved: bool = False
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    beta: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"rope kind {self.kind!r} is not supported; these are: {', '.join(KINDS)}")
        positive = ("theta", "factor", "low_freq_factor", "high_freq_factor", "attention_factor", "partial")
        for name in (*positive, "beta_fast", "beta_slow"):
            _check_positive(name, getattr(self, name))
        for name in ("short_factor", "long_factor"):
            for value in getattr(self, name):
                _check_positive(name, value)
        if self.partial > 1:
            raise ConfigError(f"rope partial is {self.partial}; more than a whole head cannot be turned")
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(
                f"rope high_freq_factor {self.high_freq_factor} must be greater than"
                f" low_freq_factor {self.low_freq_factor}"
            )
        if self.kind == "yarn" and self.theta == 1:
            raise ConfigError("rope theta is 1.0; yarn needs frequencies that differ")
        if self.kind == "longrope" and not 0 < len(self.short_factor) == len(self.long_factor):
            raise ConfigError(
                f"rope short_factor has {len(self.short_factor)} numbers and long_factor"
                f" {len(self.long_factor)}; longrope needs one of each for each pair"
            )
        if not math.isfinite(self.beta):
            raise ConfigError(f"rope beta is {self.beta}; it must be a number")
        needs_original = self.kind in ("llama3", "yarn", "longrope") or self.beta != 0
        if needs_original and self.original_max_position <= 0:
            what = "beta" if self.beta else f"{self.kind} scaling"
            raise ConfigError(
                f"rope original_max_position is {self.original_max_position}; {what} needs the positions of the"
                " first training (original_max_position_embeddings)"
            )

    def __repr__(self) -> str:
        """The constructor's call, without the fields that have their defaults."""
        shown = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return f"Rope({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"

    @property
    def of_keys(self) -> Rope:
        """How keys are turned where this is how queries are: without beta."""
        return replace(self, beta=0.0)

    def rotary(self, head_dim: int) -> int:
        """Elements of a head that belong to pairs with a frequency, the first ones; an even number.

        Raises ConfigError where `partial` cuts a pair in two, or leaves none.
        """
        assert head_dim > 0 and head_dim % 2 == 0, "rope turns pairs: head_dim is even"
        rotary = head_dim if self.kind == "proportional" else int(head_dim * self.partial)
        if rotary % 2 or rotary == 0:
            raise ConfigError(
                f"rope partial is {self.partial}, {rotary} of {head_dim} elements; it must turn whole pairs"
            )
        if self.kind == "longrope" and len(self.short_factor) != rotary // 2:
            raise ConfigError(
                f"rope short_factor and long_factor have {len(self.short_factor)} numbers, but {rotary} elements"
                f" of a head are turned: {rotary // 2} pairs"
            )
        return rotary

    def inv_freq(self, head_dim: int, *, long: bool = False) -> Frequencies:
        """Radians per position for each pair of elements, float32 [rotary / 2]; `long`: for a long sequence.

        The order of the float32 operations is that of transformers, modeling_rope_utils.py (`_compute_…`).
        Only the power is computed in float64 and rounded once: float32 powers differ in the last bit from one
        machine to the next, and the same model must give the same frequencies everywhere. Raises ConfigError as
        `rotary` does.
        """
        rotary = self.rotary(head_dim)
        exponents = np.arange(0, rotary, 2, dtype=np.float32) / rotary
        powers = (np.float64(np.float32(self.theta)) ** exponents.astype(np.float64)).astype(np.float32)
        match self.kind:
            case "linear":
                return 1.0 / powers / self.factor
            case "llama3":
                return self._stretch_low(1.0 / powers)
            case "yarn":
                return self._ramp(powers)
            case "longrope":
                return 1.0 / (np.array(self.long_factor if long else self.short_factor, np.float32) * powers)
            case "proportional":
                turned = np.arange(rotary // 2) < int(self.partial * head_dim // 2)
                return (np.where(turned, 1.0 / powers, 0.0) / self.factor).astype(np.float32)
            case _:
                return 1.0 / powers

    def head_factors(self, positions: NDArray[np.int32]) -> NDArray[np.float32]:
        """What `beta` multiplies turned heads by, one float32 for each of these positions."""
        periods = (positions // self.original_max_position).astype(np.float32)
        return 1 + np.float32(self.beta) * np.log(1 + periods)

    def _stretch_low(self, inv_freq: Frequencies) -> Frequencies:
        """Llama 3.1's scaling of the frequencies, [rotary / 2] to [rotary / 2]."""
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

    def _ramp(self, powers: Frequencies) -> Frequencies:
        """YaRN's frequencies of the powers of theta, [rotary / 2] to [rotary / 2]."""
        rotary = 2 * len(powers)

        def pair_of(turns: float, rounded: Callable[[float], float]) -> float:
            """The pair that turns so many times in the original context."""
            wavelength = self.original_max_position / (turns * 2 * math.pi)
            pair = rotary * math.log(wavelength) / (2 * math.log(self.theta))
            return rounded(pair) if self.truncate else pair

        low, high = (
            max(pair_of(self.beta_fast, math.floor), 0),
            min(pair_of(self.beta_slow, math.ceil), rotary - 1),
        )
        width = 0.001 if low == high else high - low
        ramp = np.clip((np.arange(rotary // 2, dtype=np.float32) - low) / width, 0, 1)
        unscaled = 1 - ramp.astype(np.float32)  # share of the frequency that is not stretched
        return (1.0 / (self.factor * powers) * (1 - unscaled) + 1.0 / powers * unscaled).astype(np.float32)


def yarn_attention_factor(factor: float, mscale: float = 1.0, mscale_all_dim: float = 0.0) -> float:
    """The attention factor of YaRN (arXiv 2309.00071, section 3.4) that a model without one means.

    Where both mscales are given and not 0, it is the ratio of the factors that both of them give.
    """

    def of(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    return of(mscale) / of(mscale_all_dim) if mscale and mscale_all_dim else of(1.0)


def longrope_attention_factor(factor: float, original_max_position: int) -> float:
    """The attention factor of LongRoPE that a model without one means; `factor`: of the context."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_max_position))


def _check_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"rope {name} is {value}; it must be a positive number")
