"""The masks of a step: rows of the table `allowed`, made while the model computes the logits that they restrict."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Ordered

import numpy as np

from infernum.engine.sequence import Mask, Sequence
from infernum.engine.slots import Bools, Int64, Slots, rows_of
from infernum.engine.table_rows import bits_without_ends
from infernum.errors import RequestError
from infernum.step import Int32, TableRow

PrepareMasks = Callable[[Ordered[tuple[Mask, Int32]]], None]
"""Computes the masks of a step at once: called with each mask and its output, before the masks themselves are."""


def mask_rows(
    slots: Slots,
    masked: Int64,
    sampled: Int32,
    is_end: Bools,
    prepare: PrepareMasks,
    failed: list[int],
) -> list[TableRow]:
    """The tokens that the sequences of the slots `masked` may sample after those that the last step has `sampled`.

    `sampled` [rows] is of use where the host had not read that step when this one was planned. `is_end` [vocab] marks
    the model's end tokens. Where a mask raises, or gives anything but a bit set, the number of its sequence is appended
    to `failed`, and the error is raised.
    """
    outputs: list[tuple[Sequence, Mask, Int32]] = []
    for slot, newest in rows_of(masked, slots.newest[masked]):
        sequence = slots.sequences[slot]
        assert sequence.mask is not None, "the slot is one of a mask"
        tokens = slots.tokens_of(sequence)
        if newest < 0:
            last = sampled[-1 - newest]
            tokens = np.append(tokens, last)
            if _is_last(sequence, int(last), is_end):
                continue
        outputs.append((sequence, sequence.mask, tokens[sequence.prompt_length :]))
    prepare([(mask, output) for _, mask, output in outputs])
    rows: list[TableRow] = []
    for sequence, mask, output in outputs:
        try:
            rows.append(TableRow("allowed", sequence.slot, _allowed(sequence, output, mask(output), is_end)))
        except BaseException:
            failed.append(sequence.number)
            raise
    return rows


def _is_last(sequence: Sequence, token: int, is_end: Bools) -> bool:
    """True for a token that ends a sequence, or is none."""
    ends = token >= 0 and bool(is_end[token]) and not sequence.params.ignore_eos
    return token < 0 or ends or token in sequence.params.stop_token_ids


def _allowed(sequence: Sequence, output: Int32, mask: Int32 | None, is_end: Bools) -> Int32:
    """The row of the table `allowed` for the token after an output. Raises RequestError.

    `min_tokens` forbids the end only where the mask leaves another token.
    """
    words = -(-len(is_end) // 32)
    bits = np.full(words, -1, np.int32) if mask is None else np.asarray(mask)
    if bits.shape != (words,) or bits.dtype != np.int32:
        raise RequestError(
            f"the mask of sequence {sequence.number} is {bits.dtype} {list(bits.shape)}; give int32 [{words}], "
            "a bit for each token, or None"
        )
    if len(output) >= sequence.params.min_tokens:
        return bits
    longer = bits & bits_without_ends(sequence.params, is_end)
    return longer if longer.any() else bits
