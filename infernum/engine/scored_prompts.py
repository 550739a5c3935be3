"""The rows of logits of a step that computes log-probabilities of prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from infernum.engine.sequence import Sequence
from infernum.step import Array, Int32


@dataclass(frozen=True)
class ScoredRows:
    """The rows of a step: those that sample, and those of prompts. Arrays are int32.

    tokens     [rows]     place of the row's token within the step, ascending (`Batch.output_rows`)
    sequences  [rows]     place of its sequence
    scored     [rows]     the prompt token whose log-probability the row gives; −1: the token that the row samples
    sampled    [sampled]  the rows that sample
    chunks     place of each sequence that asks, and its rows, which are those of its next tokens in order
    """

    tokens: Int32
    sequences: Int32
    scored: Int32
    sampled: Int32
    chunks: tuple[tuple[int, slice], ...]


def scored_rows(
    asking: Iterable[tuple[int, Sequence]], starts: Int32, lengths: Int32, sampled: Array
) -> ScoredRows | None:
    """The rows of a step of which these sequences, by their places, ask for log-probabilities of their prompts.

    `starts` and `lengths` are those of all sequences of the step, `sampled` the places of those that sample. None: the
    tokens of the step are scored already, and are computed again.
    """
    begins = np.cumsum(lengths) - lengths
    parts: list[tuple[int, Int32, Int32]] = []
    for place, sequence in asking:
        start = int(starts[place])
        first, end = max(start, sequence.scored), min(start + int(lengths[place]), sequence.prompt_length - 1)
        if first < end:
            tokens = np.arange(first, end, dtype=np.int32) + (begins[place] - start)
            parts.append((place, tokens, sequence.tokens[first + 1 : end + 1]))
    if not parts:
        return None
    lasts = (begins + lengths)[sampled] - 1
    tokens = np.sort(np.concatenate([lasts, *(own for _, own, _ in parts)])).astype(np.int32)
    scored = np.full(len(tokens), -1, np.int32)
    chunks: list[tuple[int, slice]] = []
    for place, own, following in parts:
        row = int(np.flatnonzero(tokens == own[0])[0])
        rows = slice(row, row + len(own))
        chunks.append((place, rows))
        scored[rows] = following
    return ScoredRows(
        tokens,
        (np.searchsorted(begins, tokens, side="right") - 1).astype(np.int32),
        scored,
        np.searchsorted(tokens, lasts).astype(np.int32),
        tuple(chunks),
    )
