"""The arrays of a step, from the plan of the step or from a prompt."""

from __future__ import annotations

from collections.abc import Sequence as Ordered

import numpy as np

from infernum.engine.scheduler import StepPlan
from infernum.engine.sequence import Sequence
from infernum.step import SEEN, Batch, Executor, Float32, Int32, Sampling


def batch_of(plan: StepPlan) -> Batch:
    """The ragged batch of a plan: its chunks in order, and one row of logits for each of `plan.rows`."""
    lengths = [chunk.length for chunk in plan.chunks]
    query_start = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    tokens = [chunk.sequence.tokens[chunk.start : chunk.start + chunk.length] for chunk in plan.chunks]
    return Batch(
        token_ids=np.concatenate(tokens).astype(np.int32),
        positions=np.concatenate([np.arange(c.start, c.start + c.length) for c in plan.chunks]).astype(
            np.int32
        ),
        sequence=np.repeat(np.arange(len(lengths)), lengths).astype(np.int32),
        query_start=query_start,
        page_table=page_table([chunk.sequence.pages for chunk in plan.chunks]),
        output_rows=np.array([query_start[i + 1] - 1 for i in plan.rows], np.int32),
        lengths=np.repeat([len(chunk.sequence.tokens) for chunk in plan.chunks], lengths).astype(np.int32),
    )


def page_table(pages: Ordered[tuple[int, ...]]) -> Int32:
    """One row of page numbers for each sequence, padded with −1: int32 [seqs, pages of the longest]."""
    table = np.full((len(pages), max(map(len, pages))), -1, np.int32)
    for row, owned in enumerate(pages):
        table[row, : len(owned)] = owned
    return table


def sampling_of(plan: StepPlan, vocab_size: int) -> Sampling:
    """The sampling parameters of each row of a plan."""
    sequences = [plan.chunks[i].sequence for i in plan.rows]
    penalised = any(sequence.params.repetition_penalty != 1 for sequence in sequences)
    return Sampling.of(
        [(sequence.params, sequence.seed) for sequence in sequences],
        seen=np.stack([_seen(sequence, vocab_size) for sequence in sequences]) if penalised else None,
    )


def _seen(sequence: Sequence, vocab_size: int) -> Int32:
    """The bit set of a sequence's tokens, prompt and output: int32 [ceil(vocab_size / 32)]."""
    words = SEEN.filled({"rows": 1, "vocab": vocab_size})[0].view(np.uint32)
    if sequence.params.repetition_penalty != 1:
        tokens = np.unique(np.array(sequence.tokens, np.int64))
        np.bitwise_or.at(words, tokens // 32, np.uint32(1) << (tokens % 32).astype(np.uint32))
    return words.view(np.int32)


def prompt_logits(executor: Executor, token_ids: Ordered[int], pages: tuple[int, ...]) -> Float32:
    """The logits after each token of a prompt, float32 [tokens, vocab], in as many steps as needed.

    `pages` must have room for the whole prompt, and are overwritten.
    """
    size = min(executor.max_rows, executor.max_batch_tokens)
    parts: list[Float32] = []
    for start in range(0, len(token_ids), size):
        chunk = np.array(token_ids[start : start + size], np.int32)
        rows = np.arange(len(chunk), dtype=np.int32)
        batch = Batch(
            token_ids=chunk,
            positions=start + rows,
            sequence=np.zeros_like(rows),
            query_start=np.array([0, len(chunk)], np.int32),
            page_table=page_table([pages]),
            output_rows=rows,
            lengths=np.full_like(rows, len(token_ids)),
        )
        parts.append(executor.logits(batch))
    return np.concatenate(parts)
