"""From logits to the next token, and from the next token to the next step, without leaving the device.

Sampling sorts nothing and sums in integers, so that neither the order of a sum nor the width of a GPU can
change a text: a token's weight is e^(logit − max) in units of 2⁻³², computed with float32 products and sums
rounded one by one, here and in templates/include/sampling.cuh. The same logits give the same token in NumPy
and in CUDA, bit by bit. (The logits themselves differ in their last bits between devices, so a text may still
part ways between them.)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from infernum.dims import ceildiv
from infernum.dtypes import F32, I32
from infernum.errors import ShapeError
from infernum.ir.graph import TensorType
from infernum.ir.kernel import Call, Layout, Refusal, Target, Template, Workspace, alternatives
from infernum.ir.op import elements, op
from infernum.sampling_params import MOST_LOGPROBS
from infernum.step import NO_TOKEN

ONE = 1 << 32
"""The weight of the most likely token; one that is less likely by more than 2³³ weighs nothing."""

# 2^x on [-1/2, 1/2]: the Taylor series, whose error (1e-7) is that of float32 itself.
EXP2 = tuple(
    np.float32(c)
    for c in (1.5403530e-4, 1.3333558e-3, 9.6181291e-3, 5.5504109e-2, 0.24022651, 0.69314718, 1.0)
)
LOG2_E = np.float32(1.4426950)

# ln(x) = 2 atanh((x − 1) / (x + 1)), whose series ends where float64 does, for x from √½ to √2.
ATANH = tuple(1 / np.float64(odd) for odd in range(21, 0, -2))
LN_2, SQRT_HALF = np.float64(0.6931471805599453), np.float64(0.7071067811865476)

_BINS = 2048
"""Levels of likelihood that tokens are told apart by on the GPU, as in templates/include/sampling.cuh."""


def _argmax_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    """Logits of a block and its threads, each of which reads four at once."""
    del target
    vocab = call.operands["logits"].width
    for values in alternatives(TILE=(2048, 1024, 4096), THREADS=(256, 128, 512)):
        tile, threads = values["TILE"], values["THREADS"]
        if tile % (4 * threads):
            yield Refusal(f"{threads} threads that read four logits each do not divide a tile of {tile}")
        else:
            splits = ceildiv(vocab, tile)
            constants = {"VOCAB": vocab, "SPLITS": splits, "FINISH_THREADS": 32, "NO_TOKEN": NO_TOKEN}
            yield Layout(constants, values)


def _sample_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    """The vocabulary in as many chunks as the block that draws has threads, each some accesses of a warp."""
    del target
    vocab, threads = call.operands["logits"].width, 1024
    chunk = 32 * ceildiv(vocab, 32 * threads)
    yield Layout(
        {
            "VOCAB": vocab,
            "THREADS": threads,
            "CHUNK": chunk,
            "CHUNKS": ceildiv(vocab, chunk),
            "KEY_WARPS": 8,
            "BINS": _BINS,
            "NO_TOKEN": NO_TOKEN,
        }
    )


def _row_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    del call, target
    yield Layout({"THREADS": 128})


@op(
    "f32 rows vocab -> i32 rows",
    kernels=[
        Template(
            "argmax",
            grid=("SPLITS", "rows", 1),
            threads="THREADS",
            layouts=_argmax_layouts,
            includes=("programmatic.cuh", "argmax.cuh"),
            workspaces=(
                Workspace("best_logit", ("rows", "SPLITS")),
                Workspace("best_token", ("rows", "SPLITS"), "i32"),
            ),
            arguments=("logits", "best_logit", "best_token"),
            symbols=(),
            next_kernel=Template(
                "argmax_finish",
                grid=("rows", 1, 1),
                threads="FINISH_THREADS",
                includes=("programmatic.cuh", "argmax.cuh"),
                arguments=("next_tokens", "best_logit", "best_token"),
                symbols=(),
            ),
        )
    ],
    results=("next_tokens",),
    flops=lambda call: elements(call.operands["logits"]),
)
def argmax(logits: np.ndarray) -> np.ndarray:
    """Take the most likely token of each row: the first of the largest logits.

    logits [rows, vocab] -> next_tokens int32 [rows], `NO_TOKEN` where the largest logit is not finite.
    """
    return np.where(has_token(logits), np.argmax(logits, axis=-1), NO_TOKEN).astype(np.int32)


@op(
    "f32 rows vocab, i32 counted vocab, f32 biased vocab, i32 masked words, i32 rows, i32 rows, i32 rows, "
    "f32 rows, i32 rows, f32 rows, f32 rows, f32 rows, f32 rows, f32 rows, i32 rows, i32 tokens, i32 rows "
    "-> i32 rows",
    kernels=[
        Template(
            "sample_keys",
            grid=("ceildiv(CHUNKS, KEY_WARPS)", "rows", 1),
            threads="32 * KEY_WARPS",
            layouts=_sample_layouts,
            includes=("programmatic.cuh", "sampling.cuh"),
            workspaces=(
                Workspace("keys", ("rows", "VOCAB"), "u32"),
                Workspace("chunk_keys", ("rows", "CHUNKS"), "u32"),
                Workspace("chunk_weights", ("rows", "CHUNKS"), "u64"),
                Workspace("level_weights", ("rows", "BINS"), "u64"),
            ),
            arguments=(
                *("logits", "counts", "logit_bias", "allowed", "counts_row", "logit_bias_row", "allowed_row"),
                *("temperature", "repetition_penalty", "presence_penalty", "frequency_penalty"),
                *("keys", "chunk_keys", "level_weights"),
            ),
            symbols=(),
            next_kernel=Template(
                "sample_weights",
                grid=("ceildiv(CHUNKS, KEY_WARPS)", "rows", 1),
                threads="32 * KEY_WARPS",
                includes=("programmatic.cuh", "sampling.cuh"),
                arguments=(
                    *("keys", "chunk_keys", "temperature", "top_k", "top_p", "min_p"),
                    *("chunk_weights", "level_weights"),
                ),
                symbols=(),
                next_kernel=Template(
                    "sample",
                    grid=("rows", 1, 1),
                    threads="THREADS",
                    includes=("programmatic.cuh", "sampling.cuh"),
                    arguments=(
                        *("keys", "chunk_keys", "chunk_weights", "level_weights"),
                        *("temperature", "top_k", "top_p", "min_p", "seed", "positions"),
                        *("output_rows", "next_tokens"),
                    ),
                    symbols=(),
                ),
            ),
        )
    ],
    results=("next_tokens",),
    flops=lambda call: f"20 * {elements(call.operands['logits'])}",
    moved_bytes=lambda call: dict.fromkeys(
        ("counts", "logit_bias", "allowed"), 0
    ),  # most rows read none of them
)
def sample(
    logits: np.ndarray,
    counts: np.ndarray,
    logit_bias: np.ndarray,
    allowed: np.ndarray,
    counts_row: np.ndarray,
    logit_bias_row: np.ndarray,
    allowed_row: np.ndarray,
    temperature: np.ndarray,
    top_k: np.ndarray,
    top_p: np.ndarray,
    min_p: np.ndarray,
    repetition_penalty: np.ndarray,
    presence_penalty: np.ndarray,
    frequency_penalty: np.ndarray,
    seed: np.ndarray,
    positions: np.ndarray,
    output_rows: np.ndarray,
) -> np.ndarray:
    """Draw one token for each row of logits [rows, vocab]; parameters are [rows] -> next_tokens int32 [rows].

    In this order, which is that of vLLM: tokens that are not allowed score −∞, bias, the penalties (`adjusted`),
    temperature (0: take the most likely token and be done), top-k (0: off), top-p (1: off), min-p (0: off), then a draw
    by inverse cumulative distribution in vocabulary order. (vLLM applies min-p before top-k.) The tables are those of
    `infernum.step.TABLES`: row r of the logits has row `counts_row[r]` of `counts`, and so on; −1: none, and then there
    are no penalties, no bias, and no token is forbidden. The randomness of the draw is a hash of the row's seed and the
    position of the row's token, `positions[output_rows[row]]`, so that it does not depend on what else is in the batch.
    Where the largest score after all this is not finite, the row has `NO_TOKEN`.
    """
    bits = random_bits(seed, positions[output_rows])
    tokens = np.full(len(logits), NO_TOKEN, np.int32)
    for row in range(len(logits)):
        scores = adjusted(
            logits[row],
            counts=counts[counts_row[row]] if counts_row[row] >= 0 else None,
            bias=logit_bias[logit_bias_row[row]] if logit_bias_row[row] >= 0 else None,
            allowed=allowed[allowed_row[row]] if allowed_row[row] >= 0 else None,
            repetition_penalty=repetition_penalty[row],
            presence_penalty=presence_penalty[row],
            frequency_penalty=frequency_penalty[row],
            temperature=temperature[row],
        )
        if not has_token(scores):
            continue
        if temperature[row] <= 0:
            tokens[row] = np.argmax(scores)
            continue
        weights = kept_weights(scores, int(top_k[row]), top_p[row], min_p[row])
        sums = np.cumsum(weights)
        target = int(bits[row]) * int(sums[-1]) >> 64
        tokens[row] = np.searchsorted(sums, np.uint64(target), side="right")
    return tokens


@op(
    "i32 rows, i32 tokens, i32 tokens -> i32 tokens, i32 tokens",
    kernels=[
        Template(
            "advance",
            grid=("ceildiv(rows, THREADS)", 1, 1),
            threads="THREADS",
            layouts=_row_layouts,
            includes=("programmatic.cuh",),
            symbols=("rows",),
        )
    ],
    results=("advanced_ids", "advanced_positions"),
    in_place={0: 1, 1: 2},
)
def advance(
    next_tokens: np.ndarray, token_ids: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Make the sampled tokens the input of the next step, in place: this is how decoding feeds itself.

    next_tokens [rows], token_ids [tokens], positions [tokens]. Of use when the step had one token and one row
    for each sequence; after any other step the host uploads its next batch, and what is written here is never
    read. A row without a token goes on with token 0, until the host has read that it has none.
    """
    rows = len(next_tokens)
    token_ids[:rows] = np.maximum(next_tokens, 0)
    positions[:rows] += 1
    return token_ids, positions


@op(
    "i32 counted vocab, i32 rows, i32 rows -> i32 counted vocab",
    kernels=[
        Template(
            "count_tokens",
            grid=("ceildiv(rows, THREADS)", 1, 1),
            threads="THREADS",
            layouts=_row_layouts,
            includes=("programmatic.cuh",),
            symbols=("rows",),
        )
    ],
    results=("counted",),
    in_place={0: 0},
    moved_bytes=lambda call: {"counts": "8 * rows"},
)
def count_tokens(counts: np.ndarray, counts_row: np.ndarray, next_tokens: np.ndarray) -> np.ndarray:
    """Count each row's sampled token, if it has one, as one more of the output, in place.

    counts [.., vocab] (`infernum.step.TABLES`), counts_row and next_tokens [rows]. A row of `counts` belongs to at most
    one row of the step.
    """
    rows = np.flatnonzero((next_tokens >= 0) & (counts_row >= 0))
    counts[counts_row[rows], next_tokens[rows]] += 2
    return counts


def _logprobs_types(
    logits: TensorType, next_tokens: TensorType, scored_token: TensorType
) -> tuple[TensorType, TensorType]:
    rows, _ = logits.shape
    if logits.dtype is not F32 or {next_tokens, scored_token} != {TensorType((rows,), I32)}:
        raise ShapeError(
            f"logprobs: logits {logits}, next_tokens {next_tokens} and scored_token {scored_token}; "
            "they are f32[rows, vocab], i32[rows] and i32[rows]"
        )
    shape = (rows, 1 + MOST_LOGPROBS)
    return TensorType(shape, I32), TensorType(shape, F32)


def _logprobs_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    """The vocabulary in as many chunks as the block of a row has threads, each some accesses of a warp."""
    del target
    vocab, threads = call.operands["logits"].width, 1024
    chunk = 32 * ceildiv(vocab, 32 * threads)
    constants = {"VOCAB": vocab, "THREADS": threads, "CHUNK": chunk, "CHUNKS": ceildiv(vocab, chunk)}
    yield Layout({**constants, "TOP": MOST_LOGPROBS, "NO_TOKEN": NO_TOKEN})


@op(
    infer=_logprobs_types,
    kernels=[
        Template(
            "logprobs",
            grid=("rows", 1, 1),
            threads="THREADS",
            layouts=_logprobs_layouts,
            includes=("programmatic.cuh", "sampling.cuh", "logprobs.cuh"),
            symbols=(),
        )
    ],
    results=("logprob_tokens", "logprobs"),
    flops=lambda call: f"20 * {elements(call.operands['logits'])}",
)
def logprobs(
    logits: np.ndarray, next_tokens: np.ndarray, scored_token: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of one token of each row, and of the most likely tokens.

    logits [rows, vocab], next_tokens and scored_token int32 [rows] -> tokens int32 and log-probabilities float32
    [rows, 21]: first the scored token, or where it is −1 the sampled token of `next_tokens`; then the 20 largest
    logits, of equal ones the first tokens first. Nothing that alters scores counts:
    a token's log-probability is (logit − largest logit) − ln(sum of all weights), computed in float64 and rounded. So
    greedy decoding samples the second column. Where there is no token (`NO_TOKEN`), the log-probability is NaN; a row
    whose largest logit is not finite has no token but the first.
    """
    rows = len(logits)
    tokens = np.full((rows, 1 + MOST_LOGPROBS), NO_TOKEN, np.int32)
    values = np.full(tokens.shape, np.nan, np.float32)
    tokens[:, 0] = np.where(scored_token < 0, next_tokens, scored_token)
    for row in np.flatnonzero(has_token(logits)):
        scores = logits[row]
        top = np.argsort(-scores, kind="stable")[:MOST_LOGPROBS]
        tokens[row, 1 : 1 + len(top)] = top
        exact = tokens[row] >= 0
        below = scores[tokens[row, exact]].astype(np.float64) - np.float64(scores.max())
        values[row, exact] = below - log_of(weights_of(scores).sum())
    return tokens, values


def log_of(weight: np.uint64) -> np.float64:
    """ln(weight / 2³²) by sums, products and quotients that every device rounds alike; 1 ≤ weight < 2⁵³."""
    part, exponent = np.frexp(np.float64(weight))  # weight = part · 2^exponent, part in [1/2, 1)
    if part < SQRT_HALF:
        part, exponent = part * 2, exponent - 1
    ratio = (part - 1) / (part + 1)
    square = ratio * ratio
    series = np.float64(0)
    for odd in ATANH:
        series = series * square + odd
    return np.float64(exponent - 32) * LN_2 + 2 * ratio * series


def has_token(scores: np.ndarray) -> np.ndarray:
    """Whether a token can be drawn by scores [..., vocab]: none is NaN or +∞, and one is above −∞."""
    return np.isfinite(scores.max(axis=-1))


def adjusted(
    scores: np.ndarray,
    *,
    counts: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
    repetition_penalty: float | np.float32 = 1.0,
    presence_penalty: float | np.float32 = 0.0,
    frequency_penalty: float | np.float32 = 0.0,
    temperature: float | np.float32 = 0.0,
) -> np.ndarray:
    """One row of logits [vocab] after bias, penalties, temperature and the set of allowed tokens; rows of the tables.

    The repetition penalty, for tokens of prompt and output, is that of Keskar et al. 2019 (arXiv:1909.05858), as
    transformers applies it. Frequency and presence penalty, for tokens of the output, are OpenAI's.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if bias is not None:
            scores = scores + bias
        if counts is not None:
            times = counts >> 1
            repeated = np.where(scores > 0, scores / repetition_penalty, scores * repetition_penalty)
            scores = np.where(counts > 0, repeated, scores)
            scores = scores - frequency_penalty * times.astype(np.float32)
            scores = np.where(times > 0, scores - presence_penalty, scores)
        if temperature > 0:
            scores = scores / temperature
    if allowed is not None:
        bits = np.unpackbits(allowed.view(np.uint8), count=len(scores), bitorder="little")
        scores = np.where(bits, scores, np.float32(-np.inf))
    return scores


def weights_of(scores: np.ndarray) -> np.ndarray:
    """e^(score − largest score) of one row in units of 2⁻³², uint64 [vocab]."""
    largest = scores.max()
    with np.errstate(invalid="ignore", over="ignore"):
        below = np.where(scores == largest, np.float32(0), scores - largest)
    power = np.maximum(below * LOG2_E, np.float32(-40))
    whole = np.rint(power)
    part = power - whole
    value = np.full_like(part, EXP2[0])
    for coefficient in EXP2[1:]:
        value = value * part + coefficient
    return np.rint(np.ldexp(value, whole.astype(np.int32) + 32)).astype(np.uint64)


def kept_weights(scores: np.ndarray, top_k: int, top_p: np.float32, min_p: np.float32) -> np.ndarray:
    """The weights of one row, uint64 [vocab], zero for tokens that top-k, top-p or min-p exclude.

    top-k keeps the scores not below the k-th largest. top-p (Holtzman et al. 2020, arXiv:1904.09751) keeps
    the smallest set of most likely tokens whose share of what is left reaches p. Both are thresholds on the
    score, so equal scores stay or go together. min-p (Nguyen et al. 2024, arXiv:2407.01082) keeps what is at
    least `min_p` times as likely as the most likely token.
    """
    weights = weights_of(scores)
    allowed = np.ones(len(scores), bool)
    if 0 < top_k < len(scores):
        allowed = scores >= np.partition(scores, -top_k)[-top_k]
    if top_p < 1:
        order = np.argsort(-scores, kind="stable")
        reached = np.cumsum(np.where(allowed, weights, np.uint64(0))[order])
        threshold = max(1, int(np.ceil(np.float64(top_p) * np.float64(reached[-1]))))
        allowed &= scores >= scores[order[np.searchsorted(reached, np.uint64(threshold))]]
    allowed &= weights >= np.uint64(np.ceil(np.float64(np.fmin(min_p, 1)) * ONE))
    return np.where(allowed, weights, np.uint64(0))


def random_bits(seed: np.ndarray, position: np.ndarray) -> np.ndarray:
    """64 random bits for each (seed, position), uint64, by SplitMix64 (Steele et al. 2014)."""
    place = seed.astype(np.uint32).astype(np.uint64) << np.uint64(32) | position.astype(np.uint32).astype(
        np.uint64
    )
    x = (place + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
