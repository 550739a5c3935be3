"""The ragged steps on which kernels are tried, and the arrays that the runtime would give a block in such a step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from infernum import dims
from infernum.ir.block import PAGE
from infernum.ir.graph import TensorType
from infernum.lab.verify.values import Array
from infernum.manifest import VariantSpec
from infernum.sampling_params import PARAMETERS, SamplingParameter
from infernum.step import (
    BATCH_INPUTS,
    PARAMETER_INPUTS,
    SCORED_TOKEN,
    TABLE_ROW_INPUTS,
    TABLES,
    StepInput,
)

Chunk = tuple[int, int]
"""One sequence of a step: its positions in the cache before the step, and its new tokens."""
Chunks = tuple[Chunk, ...]

STEPS: tuple[Chunks, ...] = (
    ((211, 1),),
    *(((end - 1, 1),) for end in (1, 63, 64, 65, 127, 128, 129, 701)),
    ((2300, 1),),
    ((63, 1), (64, 1)),
    ((1300, 1), (2300, 1)),
    ((211, 3), (64, 1), (0, 1)),
    ((64, 5),),
    ((59, 5),),
    ((0, 7),),
    tuple((end - 1, 1) for end in (1, 63, 64, 65, 127, 128, 129, 212)),
    ((211, 2), (64, 6), (0, 1)),
    ((211, 1), (64, 17), (0, 1), (130, 13), (63, 1)),
    ((64, 64),),
    (*((start, 1) for start in (211, 64, 0, 130, 63, 37, 255, 5, 100, 127) * 6), (61, 4)),
    tuple((start, 1) for start in (211, 64, 0, 130, 63, 37, 255, 5, 100, 127) * 7),
    ((64, 65),),
    ((0, 128),),
    ((211, 1), (64, 70), (0, 58), (130, 1)),
    ((211, 131), (64, 1), (0, 66), (130, 1)),
    tuple((start, 1) for start in (211, 64, 0, 130, 63, 37, 255, 5, 100, 127) * 13),
    ((63, 193), (130, 1)),
)
"""Single tokens, odd numbers of them, decodes beside chunks of prompts; contexts that end one before, at and one after
the end of a page, chunks that begin or end there, contexts long enough for kernels to go round more than once, and the
first tokens of an empty cache."""

CONTEXT_PAGES = (64, 2048)
"""Values of the symbol `context_pages`, which only decides how kernels are launched; every launch must be right."""

_SPARE_COLUMNS, _SPARE_PAGES = 2, 3
_TABLE_ROWS = 6
"""Rows of the tables of a step: fewer than a runtime has, since each is as long as the vocabulary."""
_FAR = 1 << 20
"""Positions that a prompt may have beyond those of the step."""


@dataclass(frozen=True)
class Facts:
    """One step: the values of symbols, the batch arrays by name, and how the sequences lie in the cache.

    Sequence s has `starts[s]` positions in the cache before the step and `ends[s]` after it.
    """

    chunks: Chunks
    symbols: dict[str, int]
    arrays: dict[str, Array]

    @property
    def tokens(self) -> int:
        """New tokens of all sequences together."""
        return self.symbols["tokens"]

    @property
    def starts(self) -> tuple[int, ...]:
        return tuple(start for start, _ in self.chunks)

    @property
    def ends(self) -> tuple[int, ...]:
        return tuple(start + new for start, new in self.chunks)

    def sizes(self, type_: TensorType) -> tuple[int, ...]:
        """The dims of a type in this step."""
        return tuple(dims.evaluate(dim, self.symbols) for dim in type_.shape)

    def __str__(self) -> str:
        ends = ", ".join(map(str, self.ends[:4])) + (", …" if len(self.ends) > 4 else "")
        return f"{self.tokens} {'token' if self.tokens == 1 else 'tokens'} up to positions {ends}"


def count_tokens(chunks: Chunks) -> int:
    """New tokens of a step."""
    return sum(new for _, new in chunks)


def steps_for(variant: VariantSpec, context: int, steps: Iterable[Chunks] = STEPS) -> list[Chunks]:
    """The steps that a variant serves, none longer than `context`, the fewest tokens first; never empty.

    The fewest and the most tokens of the variant, from an empty cache, are among them (unless those are too many).
    """
    largest = max(count_tokens(chunks) for chunks in steps)
    edges = (variant.min_tokens, variant.max_tokens if variant.max_tokens <= largest else variant.min_tokens)
    every = [*steps, *(((0, 1),) * tokens if variant.decodes else ((0, tokens),) for tokens in edges)]
    served = [
        chunks
        for chunks in dict.fromkeys(every)
        if variant.serves(count_tokens(chunks), decodes=all(new == 1 for _, new in chunks))
        and all(start + new <= context for start, new in chunks)
    ]
    return sorted(served, key=count_tokens)


def ragged_step(chunks: Chunks, vocab: int, rng: np.random.Generator) -> Facts:
    """A step of the given chunks, their pages in random order among unused ones.

    Page 0, which kernels may read in place of −1, is among the unused ones, so that such a reading shows.
    Every token has a row of logits where the number of tokens is even, else only the last token of each sequence.
    """
    lengths = [new for _, new in chunks]
    ends = [start + new for start, new in chunks]
    tokens = sum(lengths)
    query_start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    rows = np.arange(tokens) if tokens % 2 == 0 else query_start[1:] - 1
    page_counts = np.array([dims.ceildiv(end, PAGE) for end in ends])
    pages = int(page_counts.sum()) + _SPARE_PAGES
    page_table = np.full((len(ends), page_counts.max() + _SPARE_COLUMNS), -1)
    in_use = np.arange(page_table.shape[1]) < page_counts[:, None]
    page_table[in_use] = 1 + rng.permutation(pages - 1)[: page_counts.sum()]
    batch = {
        "token_ids": rng.integers(0, vocab, tokens),
        "positions": np.concatenate([np.arange(start, start + new) for start, new in chunks]),
        "sequence": np.repeat(np.arange(len(lengths)), lengths),
        "query_start": query_start,
        "page_table": page_table,
        "output_rows": rows,
        "lengths": np.repeat(ends + rng.choice([0, _FAR], len(ends)), lengths),
    }
    symbols = {
        "tokens": tokens,
        "seqs": len(lengths),
        "rows": len(rows),
        "max_pages": page_table.shape[1],
        "context_pages": int(rng.choice(CONTEXT_PAGES)),
        "pages": pages,
        "table_rows": _TABLE_ROWS,
    }
    arrays = {item.name: batch[item.name].astype(item.dtype.numpy) for item in BATCH_INPUTS}
    return Facts(tuple(chunks), symbols, arrays | _sampling(len(rows), vocab, rng))


def _sampling(rows: int, vocab: int, rng: np.random.Generator) -> dict[str, Array]:
    """Sampling parameters that differ from row to row and from step to step, each feature now on and now off."""

    def values(item: StepInput, parameter: SamplingParameter) -> Array:
        if not parameter.tried:
            return rng.integers(-(2**31), 2**31, rows).astype(item.dtype.numpy)
        tried: Array = np.array(parameter.tried, item.dtype.numpy)
        return np.resize(np.roll(tried, -rng.integers(len(tried))), rows)

    inputs = zip(PARAMETER_INPUTS, PARAMETERS, strict=True)
    parameters = {item.name: values(item, parameter) for item, parameter in inputs}
    tables = _tables(rows, vocab, rng)
    scored = np.where(rng.random(rows) < 0.5, -1, rng.integers(0, vocab, rows)).astype(np.int32)
    return parameters | tables | {SCORED_TOKEN.name: scored}


def _tables(rows: int, vocab: int, rng: np.random.Generator) -> dict[str, Array]:
    """The tables, and for each row of logits the row of each table that it uses; some rows of logits use no table.

    No two rows of logits have one row of a table, as no two sequences have.
    """
    sizes = {"table_rows": _TABLE_ROWS, "vocab": vocab}
    counts, bias, allowed = (table.shape(sizes) for table in TABLES)
    often = rng.choice([0, 0, 0, 0, 1, 1, 2, 3, 4, 7], counts)  # of the prompt, of the output, of both
    shift = np.where(rng.random(bias) < 0.1, -100, 4 * rng.standard_normal(bias)) * (rng.random(bias) < 0.3)
    bits = rng.integers(0, 2**32, allowed, np.uint32) | rng.integers(0, 2**32, allowed, np.uint32)
    bits[0] = 0
    bits[0, vocab // 32 - 1] = 1 << 31  # one token alone
    values = (often.astype(np.int32), shift.astype(np.float32), bits.view(np.int32))
    arrays: dict[str, Array] = {table.name: array for table, array in zip(TABLES, values, strict=True)}
    for item in TABLE_ROW_INPUTS:
        arrays[item.name] = np.full(rows, -1, np.int32)
        some = rng.permutation(rows)[:_TABLE_ROWS]
        arrays[item.name][some] = rng.permutation(_TABLE_ROWS)[: len(some)]
        if rows > 1:
            arrays[item.name][rng.integers(rows)] = -1
    return arrays
