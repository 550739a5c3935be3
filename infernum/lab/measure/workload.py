"""Steps of random tokens to measure with: prompts in as few steps as fit, and decodes at some position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infernum import dims
from infernum.bundle import Bundle
from infernum.errors import DeviceError, RequestError
from infernum.manifest import VariantSpec
from infernum.roofline import MAX_DECODES
from infernum.sampling_params import SamplingParams, derived_seed
from infernum.step import NO_TOKEN, Batch, Executor, Int32, Sampling


def random_prompts(sequences: int, length: int, vocab: int, seed: int) -> Int32:
    """Random token ids, int32 [sequences, length]."""
    return np.random.default_rng(seed).integers(0, vocab, (sequences, length), np.int32)


def page_table(sequences: int, length: int, page_size: int, seed: int) -> Int32:
    """Pages in random order for sequences of `length` positions, int32 [sequences, pages of one sequence]."""
    pages = dims.ceildiv(length, page_size)
    order = np.random.default_rng(seed).permutation(sequences * pages)
    return order.astype(np.int32).reshape(sequences, pages)


def prompt_steps(prompts: Int32, pages: Int32, executor: Executor) -> list[tuple[Batch, list[int]]]:
    """The prompts in as few steps as fit, each with the sequences whose prompt ends in it.

    A step in which no prompt ends computes the logits of its last token, which nothing reads.
    """
    count, length = prompts.shape
    steps: list[tuple[Batch, list[int]]] = []
    for start in range(0, count * length, executor.max_batch_tokens):
        chunk = np.arange(start, min(start + executor.max_batch_tokens, count * length))
        sequence, positions = np.divmod(chunk, length)
        ends = np.flatnonzero(positions == length - 1)
        assert len(ends) <= executor.max_rows, "more prompts end in a step than it has rows"
        first, last = int(sequence[0]), int(sequence[-1])
        query_start = np.searchsorted(sequence, np.arange(first, last + 2))
        batch = Batch(
            token_ids=prompts[sequence, positions],
            positions=positions.astype(np.int32),
            sequence=(sequence - first).astype(np.int32),
            query_start=query_start.astype(np.int32),
            page_table=np.ascontiguousarray(pages[first : last + 1]),
            output_rows=(ends if len(ends) else chunk[-1:] - start).astype(np.int32),
        )
        steps.append((batch, sequence[ends].tolist()))
    return steps


def decode_batch(tokens: Int32, position: int, pages: Int32) -> Batch:
    """One token of each sequence, all at one position. Raises DeviceError where a sampler could draw no token."""
    if NO_TOKEN in tokens:
        raise DeviceError("the logits are not finite; no result is given")
    starts = np.arange(len(tokens) + 1, dtype=np.int32)
    positions = np.full(len(tokens), position, np.int32)
    return Batch(tokens, positions, starts[:-1], starts, pages, starts[:-1])


def chunk_batch(tokens: Int32, start: int, pages: Int32, rows: Sequence[int] = ()) -> Batch:
    """The tokens of one sequence from position `start` on, and logits of the tokens `rows`; none: of the last token."""
    count = len(tokens)
    return Batch(
        token_ids=tokens,
        positions=np.arange(start, start + count, dtype=np.int32),
        sequence=np.zeros(count, np.int32),
        query_start=np.array([0, count], np.int32),
        page_table=pages,
        output_rows=np.array(rows or [count - 1], np.int32),
    )


def greedy(rows: int) -> Sampling:
    """The most likely token of each row."""
    return Sampling.off(rows)


def drawn(params: SamplingParams, sequences: Sequence[int]) -> Sampling:
    """A row for each of `sequences`, all sampled by `params`, each with the seed derived for its number."""
    assert not params.penalised, "measured steps have no counts of tokens"
    return Sampling.of((params, derived_seed(params.seed or 0, sequence)) for sequence in sequences)


@dataclass(frozen=True)
class Workload:
    """A step to measure, and sequences with room to repeat it.

    decodes  True: one token of each of `tokens` sequences, which have `context` positions with it.
             False: the last `tokens` tokens of one prompt of `context` tokens
    length   positions of each sequence that `pages` have room for
    """

    variant: str
    tokens: int
    context: int
    decodes: bool
    prompts: Int32
    pages: Int32
    length: int

    @property
    def sequences(self) -> int:
        return len(self.pages)

    def batch(self, start: int | None = None) -> Batch:
        """The step. Decodes are at position `start`; None: each sequence has `context` positions with the step."""
        if self.decodes:
            position = self.context - 1 if start is None else start
            return decode_batch(np.ascontiguousarray(self.prompts[:, position]), position, self.pages)
        begin = self.context - self.tokens
        return chunk_batch(np.ascontiguousarray(self.prompts[0, begin : self.context]), begin, self.pages)

    def repeats(self, most: int) -> int:
        """How often the step can be repeated, at most `most` times, if each repeat is one position further on."""
        return min(most, self.length if self.decodes else self.length - self.context + 1)

    def start(self, repeats: int) -> int | None:
        """First position of `repeats` decodes that have `context` positions on average, or as near as pages allow."""
        if not self.decodes:
            return None
        return max(0, min(self.context - 1 - repeats // 2, self.length - repeats))


def workload(
    bundle: Bundle, *, variant: str | None, tokens: int | None, context: int, room: int, seed: int
) -> Workload:
    """A step of `tokens` tokens, by default one; or of `variant`: its most decodes, or a prompt of `context` tokens.

    As many decodes at most as logits are computed for at once.

    `room`: positions that the sequences should have beyond `context`. Raises RequestError when the bundle has no such
    step.
    """
    manifest = bundle.manifest
    if not 1 <= context <= manifest.model.context:
        raise RequestError(
            f"--context is {context}; this bundle serves contexts of 1 to {manifest.model.context} tokens"
        )
    if variant is not None and tokens is not None:
        raise RequestError("--variant and --tokens exclude each other: a number of tokens has its variant")
    if variant is not None:
        specs = {each.name: each for each in manifest.variants}
        if variant not in specs:
            raise RequestError(f"--variant is {variant!r}; this bundle has {', '.join(specs)}")
        spec = specs[variant]
        fewest, most = spec.min_tokens, spec.max_tokens
        tokens = min(most, spec.max_rows) if _decodes(spec, most) else max(fewest, min(context, most))
        spec = bundle.variant_for(tokens, spec.decodes)
    elif tokens is None:
        spec = bundle.variant_for(1)
        tokens = 1
    elif any(each.serves(tokens, decodes=False) for each in manifest.variants):
        spec = bundle.variant_for(tokens)
    else:
        most = max(each.max_tokens for each in manifest.variants)
        raise RequestError(f"--tokens is {tokens}; this bundle serves steps of 1 to {most} tokens")
    decodes = _decodes(spec, tokens)
    context = context if decodes else max(context, tokens)
    sequences = tokens if decodes else 1
    pages = page_table(sequences, min(context + room, manifest.model.context), manifest.page_size, seed)
    length = min(pages.shape[1] * manifest.page_size, manifest.model.context)
    prompts = random_prompts(sequences, length, manifest.model.vocab_size, seed)
    return Workload(spec.name, tokens, context, decodes, prompts, pages, length)


def _decodes(spec: VariantSpec, tokens: int) -> bool:
    """True when a step of so many tokens decodes: one token of each sequence, as far as the variant has rows."""
    return spec.decodes or tokens <= min(MAX_DECODES, spec.max_rows)
