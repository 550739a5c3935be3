"""The samplers: blocks that turn logits into the next token, which is the input of the next step.

A result that aliases an input of the step (token_ids, positions, counts) is returned to keep its update in place.
"""

from __future__ import annotations

from typing import Any

from infernum.ir.block import BatchInputs, Tensor, Weights, block
from infernum.ops import sampling
from infernum.step import PARAMETER_INPUTS, TABLE_ROW_INPUTS


@block(logits="f32 rows vocab_size")
def greedy(logits: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> tuple[Tensor, ...]:
    """Take the most likely token of each row."""
    del w, cfg
    next_tokens = sampling.argmax(logits)
    return next_tokens, *sampling.advance(next_tokens, batch.token_ids, batch.positions)


@block(logits="f32 rows vocab_size")
def sample(logits: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> tuple[Tensor, ...]:
    """Draw a token for each row, with the sampling parameters of the row and its rows of the tables."""
    del w
    tables = batch.tables(cfg.vocab_size)
    next_tokens = sampling.sample(
        logits,
        *tables.values(),
        *(getattr(batch, item.name) for item in (*TABLE_ROW_INPUTS, *PARAMETER_INPUTS)),
        batch.positions,
        batch.output_rows,
    )
    advanced = sampling.advance(next_tokens, batch.token_ids, batch.positions)
    return next_tokens, *advanced, sampling.count_tokens(tables["counts"], batch.counts_row, next_tokens)


SAMPLERS = (greedy, sample)
"""A step runs one of them. Their input is rows of logits, so each is compiled once for steps of all sizes."""


@block(logits="f32 rows vocab_size", next_tokens="i32 rows")
def logprobs(
    logits: Tensor, next_tokens: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any
) -> tuple[Tensor, ...]:
    """Log-probabilities of the sampled and the most likely tokens; runs behind a sampler, in steps that want them."""
    del w, cfg
    return sampling.logprobs(logits, next_tokens, batch.scored_token)


BEHIND_THE_MODEL = (*SAMPLERS, logprobs)
"""The blocks that read rows of logits."""
