"""Runs steps of a bundle in NumPy: the graphs, variants and samplers of the bundle, slow and exact."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

import infernum.ops  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers the ops that graphs name
from infernum import dtypes
from infernum.bundle import Bundle
from infernum.cache_groups import cache_groups, divide_pages, most_pages, stage_windows
from infernum.cpu.routine import Routine
from infernum.cpu.weights import HostWeights
from infernum.dtypes import F32
from infernum.errors import BundleError, CompileError, DeviceError
from infernum.ir.text import parse_graph
from infernum.manifest import ANY, Manifest, Stage
from infernum.roofline import MOST_DECODES
from infernum.step import (
    BATCH_INPUTS,
    LOGPROBS,
    TABLES,
    Batch,
    Float32,
    Int32,
    LateRows,
    Logprobs,
    Sampling,
    check_input,
)
from infernum.weights.source import Progress, TensorSource

Array = np.ndarray[Any, Any]

KV_BYTES = 2**30
"""Most bytes of the KV cache, unless `max_model_len` needs more."""

SEQUENCES = 16
"""Number of sequences of full length that fit the KV cache, where `KV_BYTES` allows."""


@dataclass(frozen=True)
class HostTokens:
    """The tokens of a finished step: in NumPy a step is done when `run` returns."""

    sampled: Int32
    computed: Logprobs | None = None

    def tokens(self) -> Int32:
        """The sampled token of each row, int32 [rows], or `NO_TOKEN`."""
        return self.sampled

    def logprobs(self) -> Logprobs:
        """The log-probabilities of each row, of a step whose sampling has `logprobs`."""
        assert self.computed is not None, "the step computed no log-probabilities"
        return self.computed


@dataclass(frozen=True)
class _Bound:
    """A block in one stage of the program: its routine, and by rank, the weights and KV cache of the stage by name.

    Its page table is that of cache group number `group`.
    """

    routine: Routine
    streams: tuple[str, ...]
    arrays: tuple[dict[str, Array], ...]
    group: int

    def run(self, inputs: Mapping[str, Array], streams: Sequence[Sequence[Array]]) -> list[list[Array]]:
        """The outputs of each rank, for the inputs of the step and the streams of each rank."""
        return self.routine.run_ranks(
            [
                {**inputs, **arrays, **dict(zip(self.streams, flowing, strict=True))}
                for arrays, flowing in zip(self.arrays, streams, strict=True)
            ]
        )


@dataclass
class _LastStep:
    """The last step, from which `advance` continues. The sampler has updated its inputs in place."""

    variant: str
    sampler: str
    inputs: dict[str, Array]
    page_tables: tuple[Int32, ...]
    steps_left: int
    logprobs: bool


class CpuExecutor:
    """One model in host memory. Not for use by several threads at the same time.

    The ranks of a model that is divided run in lockstep, and have weights and caches of their own. All get the same
    logits, from which the first samples.
    """

    def __init__(
        self,
        bundle: Bundle,
        weights: Sequence[HostWeights],
        pages: dict[int, int],
        windows: dict[int, int],
    ) -> None:
        """`weights`: of each rank. `pages`: of each cache group, by its window.

        `windows`: the window of each stage that has a cache.
        """
        self._bundle = bundle
        self._pages = pages
        needed = {stage: pages[own] for stage, own in windows.items()}
        self._caches = [_allocate(bundle.manifest, needed) for _ in weights]
        groups = {stage: list(pages).index(window) for stage, window in windows.items()}
        binder = _RoutineBinder(bundle, weights, self._caches, groups)
        stages = list(enumerate(bundle.manifest.program))
        names = [variant.name for variant in bundle.manifest.variants]
        self._programs = {
            name: [binder.bind(stage, name, index) for index, stage in stages] for name in names
        }
        self._samplers = {
            sampler: binder.bind(Stage(block=sampler), ANY, None) for sampler in bundle.manifest.samplers
        }
        self._logprobs = (
            binder.bind(Stage(block=LOGPROBS), ANY, None) if LOGPROBS in bundle.manifest.blocks else None
        )
        self._last: _LastStep | None = None
        self._sampled = np.zeros(0, np.int32)
        sizes = {"table_rows": self.max_rows, "vocab": bundle.manifest.model.vocab_size}
        self._tables: dict[str, Array] = {
            table.name: np.zeros(table.shape(sizes), table.dtype.numpy) for table in TABLES
        }

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        checkpoint: TensorSource | None,
        *,
        max_model_len: int | None = None,
        max_pages_total: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> CpuExecutor:
        """Load the weights; without a checkpoint, random weights generated from `seed`.

        The KV cache holds a sequence of `max_model_len` tokens. By default that is the model's context, as far as it
        fits in 1 GiB. Raises BundleError, CheckpointError or DeviceError.
        """
        windows = stage_windows(bundle.manifest, max_model_len or bundle.manifest.model.context)
        pages = _count_pages(bundle.manifest, windows, max_model_len)
        if max_pages_total is not None:
            pages = {window: min(count, max_pages_total) for window, count in pages.items()}
        weights = [
            HostWeights.load(bundle.manifest, checkpoint, rank, seed=seed, progress=progress)
            for rank in range(bundle.manifest.ranks)
        ]
        return cls(bundle, weights, pages, windows)

    @property
    def page_size(self) -> int:
        """Positions in one page of the KV cache."""
        return self._bundle.manifest.page_size

    @property
    def num_pages(self) -> int:
        """Pages in the KV cache, of the layers without a window."""
        return self._pages[0]

    @property
    def windowed_pages(self) -> dict[int, int]:
        """Pages of the cache groups of layers with a window, by the window."""
        return {window: pages for window, pages in self._pages.items() if window}

    @property
    def max_batch_tokens(self) -> int:
        """Most tokens in one step."""
        return max(variant.max_tokens for variant in self._bundle.manifest.variants)

    @property
    def dtype(self) -> str:
        """The element type that the model computes in."""
        return self._bundle.manifest.dtype

    @property
    def max_rows(self) -> int:
        """Most rows of logits in one step."""
        return min(MOST_DECODES, self.max_batch_tokens)

    def logits(self, batch: Batch) -> Float32:
        """Run a step and return its logits, float32 [rows, vocab]."""
        self._last = None
        return self._forward(self._variant(batch), _inputs(batch), self._page_tables(batch))

    def run(self, batch: Batch, sampling: Sampling) -> HostTokens:
        """Run a step and sample one token for each row. Raises BundleError when the bundle lacks the sampler."""
        sampler = "greedy" if sampling.greedy else "sample"
        if sampler not in self._bundle.manifest.samplers:
            raise BundleError(
                f"{self._bundle.folder}: compiled without the sampler {sampler!r}; compile the model again"
            )
        inputs = _inputs(batch) | sampling.arrays() | self._tables
        unread = batch.token_ids < 0
        inputs["token_ids"][unread] = self._sampled[-1 - batch.token_ids[unread]]
        for write in sampling.writes:
            self._tables[write.table][write.row] = write.values
        decode = batch.tokens == batch.seqs == batch.rows
        room = batch.room(self.page_size) if decode else 0
        if sampling.logprobs and self._logprobs is None:
            raise BundleError(
                f"{self._bundle.folder}: compiled without log-probabilities; compile the model again"
            )
        tables = self._page_tables(batch)
        step = _LastStep(self._variant(batch), sampler, inputs, tables, room, sampling.logprobs)
        return self._step(step, sampling.late)

    def advance(self) -> HostTokens:
        """Run the next step of the last batch. The input of each sequence is the token that it sampled last.

        The page table of that batch must have pages for the new positions. After a step that failed, call `run` first:
        some inputs may have been updated and others not.
        """
        assert self._last is not None, "advance() follows a run()"
        assert self._last.steps_left > 0, (
            "advance() needs one token and one row for each sequence, and a page for each new position"
        )
        self._last.steps_left -= 1
        return self._step(self._last)

    def close(self) -> None:
        """Free weights and cache; the executor cannot be used afterwards."""
        self._last = None
        self._programs.clear()
        self._samplers.clear()
        self._caches.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _step(self, step: _LastStep, late: LateRows | None = None) -> HostTokens:
        self._last = None
        logits = self._forward(step.variant, step.inputs, step.page_tables)
        for write in late() if late is not None else ():
            self._tables[write.table][write.row] = write.values
        bound = self._samplers[step.sampler]
        ((next_tokens, *_),) = bound.run(step.inputs, [[logits]])
        computed = None
        if step.logprobs and self._logprobs is not None:
            (outputs,) = self._logprobs.run(step.inputs, [[logits, next_tokens]])
            computed = Logprobs(*outputs)
        self._last = step
        self._sampled = np.maximum(next_tokens, 0)
        return HostTokens(next_tokens, computed)

    def _page_tables(self, batch: Batch) -> tuple[Int32, ...]:
        """The page table of each cache group."""
        return tuple(batch.page_table_of(group) for group in range(len(self._pages)))

    def _forward(self, variant: str, inputs: dict[str, Array], page_tables: tuple[Int32, ...]) -> Float32:
        """Run the stages of the program, each on the outputs of the stage before it; the last outputs the logits."""
        flowing: list[list[Array]] = [[] for _ in self._caches]
        for bound in self._programs[variant]:
            flowing = bound.run({**inputs, "page_table": page_tables[bound.group]}, flowing)
        return flowing[0][0]

    def _variant(self, batch: Batch) -> str:
        variant = self._bundle.variant_for(batch.tokens, batch.decodes)
        assert batch.rows <= self.max_rows, f"{batch.rows} rows in a step: at most {self.max_rows}"
        return variant.name


class _RoutineBinder:
    """Binds each stage to its routine and arrays. A block's graph is read once for all its layers."""

    def __init__(
        self,
        bundle: Bundle,
        weights: Sequence[HostWeights],
        caches: Sequence[dict[int, Array]],
        groups: dict[int, int],
    ) -> None:
        self._bundle = bundle
        self._weights = weights
        self._caches = caches
        self._groups = groups
        self._routines: dict[str, Routine] = {}

    def bind(self, stage: Stage, variant: str, index: int | None) -> _Bound:
        """Block `stage.block` with its weights and, for stage `index` of the program, its KV cache, on every rank.

        A sampler, which has no `index`, is bound for the first rank alone.
        """
        block = self._bundle.manifest.blocks[stage.block][variant]
        for spec in block.batch:
            check_input(spec.name, dtypes.dtype(spec.dtype), stage.block)
        ranks = list(zip(self._weights, self._caches, strict=True))[: None if index is not None else 1]
        arrays = tuple(
            {name: weights.array(weight, stage) for name, weight in block.weights.items()}
            for weights, _ in ranks
        )
        for state in block.state:
            assert index is not None, f"{stage.block}: a sampler has no KV cache"
            for own, (_, caches) in zip(arrays, ranks, strict=True):
                own[state.name] = caches[index]
        if block.graph not in self._routines:
            self._routines[block.graph] = _read_routine(self._bundle, block.graph)
        streams = tuple(spec.name for spec in block.stream_in)
        group = self._groups.get(index, 0) if index is not None else 0
        return _Bound(self._routines[block.graph], streams, arrays, group)


def _read_routine(bundle: Bundle, file: str) -> Routine:
    try:
        return Routine(parse_graph(bundle.read(file).decode()))
    except (CompileError, UnicodeDecodeError) as error:
        raise BundleError(f"{bundle.folder / file}: {error}; compile the model again") from error


def _inputs(batch: Batch) -> dict[str, Array]:
    """The arrays of a step, with copies of the arrays that a sampler updates in place."""
    arrays = batch.arrays()
    return arrays | {item.name: arrays[item.name].copy() for item in BATCH_INPUTS if item.updated}


def _cache_shapes(manifest: Manifest) -> dict[int, tuple[int, ...]]:
    """Shape of one page of the KV cache, by the index of its stage."""
    shapes: dict[int, tuple[int, ...]] = {}
    for index, stage in enumerate(manifest.program):
        block = next(iter(manifest.blocks[stage.block].values()))
        for state in block.state:
            shapes[index] = tuple(int(dim) for dim in state.shape[1:])
    return shapes


def _count_pages(manifest: Manifest, windows: Mapping[int, int], max_model_len: int | None) -> dict[int, int]:
    """Pages of each cache group, by its window, for several sequences of full length.

    Without `max_model_len` it may be less than one such sequence.
    """
    element_bytes = manifest.ranks * F32.bytes
    page_bytes = {stage: element_bytes * math.prod(shape) for stage, shape in _cache_shapes(manifest).items()}
    groups = cache_groups(windows, page_bytes)
    length, size = max_model_len or manifest.model.context, manifest.page_size
    chunk = max(variant.max_tokens for variant in manifest.variants)
    needed = [most_pages(group.window, length, chunk, size) for group in groups]
    least = sum(count * group.page_bytes for count, group in zip(needed, groups, strict=True))
    for longest in (length, 1):
        pages = divide_pages(
            groups,
            KV_BYTES if max_model_len is None else max(KV_BYTES, least),
            page_size=size,
            chunk=chunk,
            length=longest,
            sequences=SEQUENCES,
        )
        if pages is not None:
            break
    else:
        pages = [1] * len(groups)
    return {
        group.window: min(count, SEQUENCES * most)
        for group, count, most in zip(groups, pages, needed, strict=True)
    }


def _allocate(manifest: Manifest, pages: Mapping[int, int]) -> dict[int, Array]:
    """A KV cache for each stage with state. The system allocates the memory when pages are first written."""
    try:
        return {
            index: np.zeros((pages[index], *shape), np.float32)
            for index, shape in _cache_shapes(manifest).items()
        }
    except MemoryError as error:
        raise DeviceError(
            f"the KV cache of {max(pages.values())} pages does not fit in memory; lower --max-model-len"
        ) from error
