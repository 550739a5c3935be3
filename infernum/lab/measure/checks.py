"""Checks of a generation: its tokens against its logits, its logits against the unfused path's, and run against run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from infernum import dtypes
from infernum.bundle import Bundle
from infernum.dtypes import relative_error
from infernum.errors import DeviceError
from infernum.lab.measure.generation import Generation
from infernum.lab.measure.workload import chunk_batch, decode_batch
from infernum.ops.sampling import adjusted, kept_weights
from infernum.sampling_params import EXCLUDING, SamplingParameter, SamplingParams, listed
from infernum.step import Executor, Float32, Int32

CHECKED_STEPS = 4
"""Decode steps, evenly from the first to the last, whose logits are computed again."""


def checked_places(tokens: int) -> list[int]:
    """Indices of the output tokens whose choice is checked, from the second token to the last."""
    return sorted({int(i) for i in np.linspace(1, tokens - 1, CHECKED_STEPS)})


def decoded_logits(
    executor: Executor, generation: Generation, output: Int32, places: Sequence[int]
) -> Float32:
    """Logits of the measured path that chose output tokens `places`, [places, batch, vocab].

    They are computed over the keys and values of the generation, which must be the executor's last one.
    """
    length = generation.prompts.shape[1]
    steps = [
        decode_batch(np.ascontiguousarray(output[:, p - 1]), length + p - 1, generation.pages) for p in places
    ]
    return np.stack([executor.logits(step) for step in steps])


def prefilled_logits(
    executor: Executor, generation: Generation, output: Int32, places: Sequence[int]
) -> Float32:
    """The same logits from another executor, which reads prompt and output in chunks, one sequence at a time.

    A chunk computes the logits of the rows at `places`, or of one row where it has none of them.
    """
    length = generation.prompts.shape[1]
    sequences: list[Float32] = []
    whole = np.concatenate([generation.prompts, output], axis=1)
    for sequence, tokens in enumerate(whole):
        pages = generation.pages[sequence : sequence + 1]
        logits: list[Float32] = []
        for start in range(0, len(tokens), executor.max_batch_tokens):
            chunk = np.ascontiguousarray(tokens[start : start + executor.max_batch_tokens])
            rows = [r for p in places if 0 <= (r := length + p - 1 - start) < len(chunk)]
            computed = executor.logits(chunk_batch(chunk, start, pages, rows))
            if rows:
                logits.append(computed)
        sequences.append(np.concatenate(logits))
    return np.stack(sequences, axis=1)


def check_tokens(logits: Float32, output: Int32, places: Sequence[int], params: SamplingParams) -> None:
    """Raises DeviceError unless `params` may choose the tokens at `places` from these logits.

    logits [places, batch, vocab], output [batch, tokens]. Greedy: the most likely token. Otherwise a token that the
    sampling parameters do not exclude, by the NumPy meaning of the sampler.
    """
    if not np.isfinite(logits).all():
        raise DeviceError("the logits are not finite; no result is given")
    if output.min() < 0 or output.max() >= logits.shape[-1]:
        raise DeviceError("sampled tokens lie outside of the vocabulary; no result is given")
    chosen = output[:, places].T
    if params.greedy:
        if not np.array_equal(logits.argmax(axis=-1), chosen):
            raise DeviceError("decoding chose other tokens than the most likely ones; no result is given")
        return
    for place, rows, tokens in zip(places, logits, chosen, strict=True):
        for row, token in zip(rows, tokens, strict=True):
            if drawable_weights(row, params)[token] == 0:
                names = listed((parameter.label for parameter in EXCLUDING), "or")
                raise DeviceError(
                    f"output token {place} is {token}, which {names} exclude; no result is given"
                )


def drawable_weights(logits: Float32, params: SamplingParams) -> np.ndarray:
    """The weights by which the sampler draws from logits [vocab], uint64; zero for tokens that `params` exclude."""
    scores = adjusted(logits, temperature=np.float32(params.temperature))
    return kept_weights(scores, **{p.name: _scalar(p, params) for p in EXCLUDING})


def _scalar(parameter: SamplingParameter, params: SamplingParams) -> Any:
    """A parameter's value in the type of the op `sample`: int or float32."""
    value = getattr(params, parameter.name)
    return value if parameter.kind is int else np.float32(value)


def check_logits(bundle: Bundle, logits: Float32, reference: Float32) -> float:
    """The relative error of the measured logits. Raises DeviceError when it is larger than rounding explains."""
    if not (np.isfinite(logits).all() and np.isfinite(reference).all()):
        raise DeviceError("the logits are not finite; no result is given")
    error, allowed = relative_error(logits, reference), allowed_error(bundle)
    if not error <= allowed:
        raise DeviceError(
            f"the logits differ from those of the unfused path by {error:.2e}, more than {allowed:.2e};"
            " no result is given"
        )
    return error


def allowed_error(bundle: Bundle) -> float:
    """Relative error between two right computations of the logits.

    Layers round independently, so that their errors add in quadrature.
    """
    return dtypes.dtype(bundle.manifest.dtype).tolerance * math.sqrt(max(1, bundle.manifest.model.num_layers))


def check_same_tokens(number: int, output: Int32, first: Int32) -> None:
    """Raises DeviceError unless generation `number` has the tokens of the first, int32 [batch, tokens]."""
    differs = np.argwhere(output != first)
    if len(differs):
        sequence, token = (int(i) for i in differs[0])
        raise DeviceError(
            f"generation {number} gave other tokens than the first: sequence {sequence} differs from output token"
            f" {token} on; no result is given"
        )


def check_same_logits(number: int, logits: Float32, first: Float32) -> None:
    """Raises DeviceError unless generation `number` has the logits of the first, bit by bit."""
    if not np.array_equal(logits.view(np.uint32), first.view(np.uint32)):
        raise DeviceError(
            f"generation {number} gave the tokens of the first, but by other logits: they differ in their last"
            " bits; no result is given"
        )
