"""The arrays of a step, from the plan of the step or from a prompt."""

from __future__ import annotations

from collections.abc import Sequence as Ordered

import numpy as np

from infernum.cache_groups import first_page
from infernum.engine.scheduler import StepPlan
from infernum.engine.slots import Bools, Slots, integers, parameters_of
from infernum.engine.windowed_pages import longest_chunk
from infernum.step import PARAMETER_INPUTS, Batch, Executor, Float32, Int32, Sampling, TableRow


def batch_of(plan: StepPlan, slots: Slots, page_size: int) -> Batch:
    """The ragged batch of a plan, whose rows of logits are those of `plan.rows`.

    The token of a row that the host has not read is a reference to that row (`Batch`).
    """
    count = len(plan.slots)
    columns = int(slots.held[slots.held.argmax()]) // page_size
    table = slots.pages[:, :columns].take(plan.slots, axis=0)
    windowed = [group.table[:, :columns].take(plan.slots, axis=0) for group in slots.windowed]
    tables = np.stack(windowed) if windowed else None
    if plan.is_decode:
        rows, token_ids = slots.places[:count], slots.newest.take(plan.slots)
        return Batch(token_ids, plan.starts, rows, slots.places[: count + 1], table, rows, plan.ends, tables)
    decodes, tokens = plan.decodes, plan.decodes + plan.chunk_tokens
    query_start = slots.places[: count + 1].copy()
    token_ids, positions, sequence, lengths = np.empty((4, tokens), np.int32)
    token_ids[:decodes] = slots.newest.take(plan.slots[:decodes])
    positions[:decodes] = plan.starts[:decodes]
    sequence[:decodes] = slots.places[:decodes]
    lengths[:decodes] = plan.ends[:decodes]
    at = decodes
    for place, (slot, start, end) in enumerate(plan.chunks, decodes):
        chunk = slice(at, at + end - start)
        token_ids[chunk] = slots.sequences[slot].tokens[start:end]
        positions[chunk] = slots.positions[start:end]
        sequence[chunk], lengths[chunk] = place, slots.total[slot]
        at = query_start[place + 1] = chunk.stop
    rows = query_start[1:] - slots.ones[:count] if plan.scored is None else plan.scored.tokens
    if plan.scored is None and len(plan.sampled) < count:
        rows = rows.take(plan.rows)
    return Batch(token_ids, positions, sequence, query_start, table, rows, lengths, tables)


def page_table(pages: Ordered[Ordered[int]]) -> Int32:
    """One row of page numbers for each sequence, padded with −1: int32 [seqs, pages of the longest]."""
    table = np.full((len(pages), max(map(len, pages))), -1, np.int32)
    for row, owned in enumerate(pages):
        table[row, : len(owned)] = owned
    return table


def sampling_of(plan: StepPlan, slots: Slots, is_end: Bools) -> Sampling:
    """The sampling of each row of a plan. A row that samples nothing has no rows of tables.

    `is_end` [vocab] marks the model's end tokens.
    """
    is_plain = len(plan.sampled) and plan.scored is None
    rows = plan.sampling if is_plain else plan.slots[plan.rows]
    parameters = parameters_of(slots.sampling.take(rows, axis=1))
    writes: list[TableRow] = []
    owned: dict[str, Int32] = {}
    if slots.tables.in_use:
        for slot in integers(slots.tables.unwritten(plan.slots)):
            sequence = slots.sequences[slot]
            writes += slots.tables.writes(sequence, slots.tokens_of(sequence), is_end)
        if len(plan.sampled):
            owned = slots.tables.rows(rows, slots.total[rows] - slots.prompt[rows])
    if plan.scored is not None:
        samples = np.zeros(len(rows), np.bool_)
        samples[plan.sampled_rows] = True
        for item in PARAMETER_INPUTS:
            parameters[item.name][~samples] = item.default
        owned = {name: np.where(samples, own, np.int32(-1)) for name, own in owned.items()}
        return Sampling(parameters, owned, tuple(writes), logprobs=True, scored=plan.scored.scored)
    logprobs = bool(np.count_nonzero(slots.logprobs) and np.count_nonzero(slots.logprobs[plan.sampling]))
    return Sampling(parameters, owned, tuple(writes), logprobs=logprobs)


def prompt_logits(executor: Executor, token_ids: Int32, pages: Ordered[int]) -> Float32:
    """The logits after each token of a prompt, int32 [tokens], as float32 [tokens, vocab], in as many steps as needed.

    `pages` must have room for the whole prompt, and are overwritten, as pages of layers with a window are.
    """
    groups, page_size = executor.windowed_pages.items(), executor.page_size
    chunks = [longest_chunk(window, len(token_ids), count, page_size) for window, count in groups]
    size = min([executor.max_rows, executor.max_batch_tokens, *chunks])
    columns = np.arange(len(pages), dtype=np.int32)
    parts: list[Float32] = []
    for start in range(0, len(token_ids), size):
        chunk = token_ids[start : start + size]
        rows = np.arange(len(chunk), dtype=np.int32)
        windowed = [
            np.where(columns < first_page(start, window, page_size), -1, columns % count)[None]
            for window, count in groups
        ]
        batch = Batch(
            token_ids=chunk,
            positions=start + rows,
            sequence=np.zeros_like(rows),
            query_start=np.array([0, len(chunk)], np.int32),
            page_table=page_table([pages]),
            output_rows=rows,
            lengths=np.full_like(rows, len(token_ids)),
            windowed=np.stack(windowed).astype(np.int32) if windowed else None,
        )
        parts.append(executor.logits(batch))
    return np.concatenate(parts)
