"""Runs steps of a bundle on a GPU: upload, launch, fetch the sampled tokens. Decodes run as CUDA graphs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np

from infernum import dims
from infernum.bundle import Bundle
from infernum.errors import BundleError, DeviceError
from infernum.manifest import Gemm
from infernum.runtime.decode_graphs import DecodeGraphs, StepShape
from infernum.runtime.device import Device
from infernum.runtime.gemm import CublasLt
from infernum.runtime.gemm_algorithms import TunedProduct
from infernum.runtime.inputs import Padding
from infernum.runtime.layout import block_variant
from infernum.runtime.loading import LoadOptions, MemoryUse, OpenLibrary, load_bundle
from infernum.runtime.lockstep import Phases, in_lockstep
from infernum.runtime.prepared import PreparedStep
from infernum.runtime.product import MatrixProduct
from infernum.runtime.sampled import TURNS, SampledTokens, TokenRing
from infernum.runtime.stream import CudaGraph
from infernum.runtime.timing import StepMarks
from infernum.sampling_params import SamplingParams
from infernum.step import Batch, Executor, Float32, LateRows, Sampling
from infernum.weights.source import Progress, TensorSource


class CudaExecutor:
    """One model on one GPU. Not for use by several threads at the same time.

    Its GPU memory is freed by `close`, or else when the executor and its sampled tokens are garbage-collected.
    """

    def __init__(
        self,
        bundle: Bundle,
        checkpoint: TensorSource | None,
        device: Device,
        options: LoadOptions,
        *,
        use_graphs: bool = True,
        progress: Progress | None = None,
        open_library: OpenLibrary = CublasLt,
    ) -> None:
        """Load `bundle` onto `device`. The executor closes the device, also when loading fails."""
        self._bundle = bundle
        self._device = device
        self._use_graphs = use_graphs
        self._stack = ExitStack()
        self._last: StepShape | None = None
        self._marks: StepMarks | None = None
        self._last_rows = 0
        self._last_step: tuple[Batch, Sampling] | None = None
        self._rows_at_once = max(variant.max_rows for variant in bundle.manifest.variants)
        self._longest = 0
        self._advances_left = 0
        try:
            self._stack.callback(device.close)
            self._stream = device.stream()
            self._stack.callback(self._stream.close)
            self._loaded = load_bundle(
                bundle, checkpoint, device, self._stream, options, open_library, self._stack, progress
            )
            self._ring = TokenRing(device, self._stream, self._loaded.limits.rows, self._stack)
            self._decodes = DecodeGraphs(self._stream)
            self._stack.callback(self._decodes.clear)
        except BaseException:
            with suppress(DeviceError):  # the first error is the one to report
                self._stack.close()
            raise
        self._stack.callback(self._stream.synchronize)
        # Nothing on the stack may refer to the executor, which would then never be garbage-collected.
        self._dropped = weakref.finalize(self, _give_back_quietly, device, self._stack)
        self._dropped.atexit = False  # the driver frees everything when a process ends

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        checkpoint: TensorSource | None,
        *,
        device_index: int = 0,
        gpu_memory_utilization: float = 0.9,
        max_model_len: int | None = None,
        max_pages_total: int | None = None,
        use_graphs: bool = True,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> CudaExecutor:
        """Load `bundle` onto GPU `device_index`; without a checkpoint, with random weights from `seed`.

        For the other options see `LoadOptions`. Raises BundleError, CheckpointError or DeviceError.
        """
        options = LoadOptions(gpu_memory_utilization, max_model_len, max_pages_total, seed)
        device = Device.open(device_index)
        return cls(bundle, checkpoint, device, options, use_graphs=use_graphs, progress=progress)

    @property
    def page_size(self) -> int:
        """Positions in one page of the KV cache."""
        return self._bundle.manifest.page_size

    @property
    def num_pages(self) -> int:
        """Pages in the KV cache, of the layers without a window."""
        return self._loaded.pages[0]

    @property
    def windowed_pages(self) -> dict[int, int]:
        """Pages of the cache groups of layers with a window, by the window."""
        return {window: pages for window, pages in self._loaded.pages.items() if window}

    @property
    def max_batch_tokens(self) -> int:
        """Most tokens in one step."""
        return self._loaded.limits.tokens

    @property
    def dtype(self) -> str:
        """The element type that the model computes in."""
        return self._bundle.manifest.dtype

    @property
    def max_rows(self) -> int:
        """Most rows of logits in one step."""
        return self._loaded.limits.rows

    @property
    def max_pages(self) -> int:
        """Most pages of one sequence: columns that a batch's page table may have."""
        return self._loaded.limits.max_pages

    @property
    def weights_address(self) -> int:
        """Where the weights begin on the GPU, placed as `infernum.weights.plan` says."""
        return self._loaded.weights

    @property
    def memory(self) -> MemoryUse:
        """Bytes of GPU memory by purpose."""
        return self._loaded.memory

    def run(self, batch: Batch, sampling: Sampling) -> SampledTokens:
        """Run a step and sample one token for each row; returns while the step is running.

        Raises BundleError when the bundle was compiled without the sampler that `sampling` needs.
        """
        return in_lockstep([self.phases(batch, sampling)])

    def phases(self, batch: Batch, sampling: Sampling) -> Phases[SampledTokens]:
        """What `run` does, in phases.

        The first ends before the launch, with nothing left to allocate. With `Sampling.late` the second ends when the
        model is launched, and its sampler waits.
        """
        self._device.activate()
        shape = self._shape(batch, "greedy" if sampling.greedy else "sample")
        if sampling.logprobs:
            if not self._loaded.logprobs:
                raise BundleError(
                    f"{self._bundle.folder}: compiled without log-probabilities; compile the model again"
                )
            shape = replace(shape, logprobs=True)
        padding = None
        if self._use_graphs and shape.is_decode:
            shape, padding = self._padded(shape)
        self._last = None
        self._loaded.inputs.upload(batch, sampling, padding)
        sampled = yield from self._step(shape, batch.rows, sampling.late)
        self._last, self._last_rows = shape, batch.rows
        self._last_step = (batch, replace(sampling, writes=())) if self._is_in_parts(shape) else None
        self._longest = batch.longest
        self._advances_left = batch.room(self.page_size) if shape.is_decode else 0
        return sampled

    def advance(self) -> SampledTokens:
        """Run the next step of the last batch. The input of each sequence is the token that it sampled last.

        Nothing is uploaded. The page table of that batch must have pages for the new positions. After a step that
        failed, call `run` first: the inputs on the GPU are then unknown.
        """
        return in_lockstep([self.advance_phases()])

    def advance_phases(self) -> Phases[SampledTokens]:
        """What `advance` does, in phases."""
        shape, self._last = self._last, None
        assert shape is not None and shape.is_decode, "advance() follows a run() of one token per sequence"
        assert self._advances_left > 0, "advance() would go past the pages of a sequence"
        if self._last_step is not None:
            batch, sampling = self._last_step
            rows = np.arange(batch.rows, dtype=np.int32)
            batch = replace(batch, token_ids=-1 - rows, positions=batch.positions + 1)
            return (yield from self.phases(batch, sampling))
        self._advances_left -= 1
        self._longest += 1
        context_pages = self._context_pages(self._longest)
        if context_pages != shape.context_pages:
            shape = replace(shape, context_pages=context_pages)
        self._device.activate()
        sampled = yield from self._step(shape, self._last_rows)
        self._last = shape
        return sampled

    def warm_graphs(self, progress: Progress | None = None, by: Executor | None = None) -> None:
        """Capture the CUDA graphs of decodes of every size and sampler, for contexts of up to 64 pages.

        Graphs of longer contexts are captured at their second step. Ends early, with a warning, when a graph cannot be
        captured. The next step must be a `run`. `by` runs the steps where this executor is one rank of several. Raises
        DeviceError.
        """
        by = by or self
        scratch_pages = (by.num_pages, *by.windowed_pages.values())  # which no sequence owns
        most = self.max_rows
        sizes = sorted({min(dims.round_decodes(n), most) for n in range(1, most + 1)})
        samplings = [Sampling.off(size) for size in sizes]
        samplings += [Sampling.of([(SamplingParams(), 0)] * size) for size in sizes]
        for number, (size, sampling) in enumerate(zip(2 * sizes, samplings, strict=True), 1):
            rows = np.arange(size + 1, dtype=np.int32)
            zeros = np.zeros(size, np.int32)
            pages, *windowed = (np.full((size, 1), page, np.int32) for page in scratch_pages)
            batch = Batch(
                zeros, zeros, rows[:-1], rows, pages, rows[:-1], windowed=np.array(windowed, np.int32)
            )
            for _ in range(1 + TURNS):
                by.run(batch, sampling).tokens()
            assert self._last is not None, "a decode has run"
            if not self._decodes.can_capture(self._last):
                break
            if progress is not None:
                progress(number, len(samplings))
        self._last = None

    def prepare(self, batch: Batch, sampling: Sampling) -> PreparedStep:
        """A step whose kernels the caller queues, for measurements. The next step must be a `run`.

        Raises BundleError when the bundle was compiled without the sampler that `sampling` needs.
        """
        self._device.activate()
        shape = self._shape(batch, "greedy" if sampling.greedy else "sample")
        self._last = None
        assert not self._is_in_parts(shape), f"a step of at most {self._rows_at_once} rows is measured"
        samplers = self._loaded.samplers
        programs = (self._loaded.programs[shape.variant], samplers[shape.variant, shape.sampler, 0])
        return PreparedStep(
            self._device,
            self._stream,
            self._loaded,
            programs,
            batch,
            sampling,
            shape.context_pages,
            self._ring,
        )

    @contextmanager
    def marked(self) -> Generator[StepMarks]:
        """Time stamps around the kernels of every step that is run until the end of the context."""
        marks = StepMarks(self._device, self._stream)
        self._marks = marks
        try:
            yield marks
        finally:
            self._marks = None
            self._stream.synchronize()
            marks.close()

    def tune_products(
        self, tokens: int, on_tuned: Callable[[TunedProduct], None] = lambda tuned: None
    ) -> list[TunedProduct]:
        """Time the algorithms of every matrix product in a step of one sequence of `tokens` tokens.

        The fastest algorithms are stored in the user's cache and used from now on; `on_tuned` is called with each. No
        step may be running. Memory other than weights and KV cache is overwritten. Raises DeviceError.
        """
        assert 0 < tokens <= self.max_batch_tokens, f"{tokens} tokens: at most {self.max_batch_tokens}"
        library = self._loaded.products
        if not isinstance(library, CublasLt):
            return []
        self._device.activate()
        self._stream.synchronize()
        self._last = None
        by_shape: dict[tuple[object, ...], tuple[list[MatrixProduct], int]] = {}
        for product, m in self._products(library, tokens):
            by_shape.setdefault(product.shape_key(m), ([], m))[0].append(product)
        tuned: list[TunedProduct] = []
        for products, m in by_shape.values():
            tuned.append(library.tune(products, m))
            on_tuned(tuned[-1])
        self._decodes.clear()  # their CUDA graphs hold the old algorithms
        return tuned

    def logits(self, batch: Batch) -> Float32:
        """Run a step and return its logits, float32 [rows, vocab], for at most `max_rows` rows."""
        return in_lockstep([self.logits_phases(batch)])

    def logits_phases(self, batch: Batch) -> Phases[Float32]:
        """What `logits` does, in phases."""
        self._device.activate()
        shape = self._shape(batch, "")
        self._last = None
        self._loaded.inputs.upload(batch, None)
        logits = np.empty((batch.rows, self._loaded.limits.vocab), np.float32)
        for queued in self._queue_model(shape):
            yield
            self._device.activate()
            if queued is None:
                continue
            first, rows = queued
            part = logits[first : first + rows]
            if part.size:
                self._stream.download(part.ctypes.data, self._loaded.logits, part.nbytes)
        self._stream.synchronize()
        return logits

    def synchronize(self) -> None:
        """Wait until all steps that were launched are done."""
        self._device.activate()
        self._stream.synchronize()

    def close(self) -> None:
        """Free device memory; the executor cannot be used afterwards."""
        self._last = None
        if self._dropped.detach() is not None:
            self._device.activate()
            self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The first error is the one to report.
        with suppress(DeviceError) if error is not None else nullcontext():
            self.close()

    def _shape(self, batch: Batch, sampler: str) -> StepShape:
        variant, limits = self._bundle.variant_for(batch.tokens, batch.decodes), self._loaded.limits
        assert batch.rows <= limits.rows, f"{batch.rows} rows in a step: at most {limits.rows}"
        assert 0 < batch.seqs <= limits.seqs, f"{batch.seqs} sequences in a step: at most {limits.seqs}"
        columns = batch.page_table.shape[1]
        assert columns <= limits.max_pages, f"{columns} columns in the page table: at most {limits.max_pages}"
        if sampler and (variant.name, sampler, 0) not in self._loaded.samplers:
            raise BundleError(
                f"{self._bundle.folder}: compiled without the sampler {sampler!r}; compile the model again"
            )
        context_pages = self._context_pages(batch.longest)
        return StepShape(variant.name, batch.tokens, batch.seqs, batch.rows, context_pages, sampler)

    def _context_pages(self, longest: int) -> int:
        return dims.round_pages(dims.ceildiv(longest, self.page_size))

    @property
    def _scratch_pages(self) -> tuple[int, ...]:
        """The page of each cache group that no sequence owns."""
        return tuple(self._loaded.pages.values())

    def _padded(self, shape: StepShape) -> tuple[StepShape, Padding | None]:
        """A decode filled up to a number of sequences that few decodes have, so that their CUDA graphs are few."""
        sequences = min(dims.round_decodes(shape.seqs), self.max_rows, self.max_batch_tokens)
        if sequences == shape.seqs:
            return shape, None
        variant = self._bundle.variant_for(sequences, decodes=True).name
        padded = replace(shape, variant=variant, tokens=sequences, seqs=sequences, rows=sequences)
        return padded, Padding(sequences, self._scratch_pages)

    def _step(self, shape: StepShape, rows: int, late: LateRows | None = None) -> Phases[SampledTokens]:
        """Launch a step and the copy of the tokens of its first `rows` rows."""
        turn = self._ring.next_turn()
        model = shape if late is None else replace(shape, sampler="", logprobs=False)
        parts_wait = late is not None and self._is_in_parts(shape)
        graph = None if parts_wait else self._graph(model, turn if late is None else 0)
        yield
        self._device.activate()
        if self._marks is not None:
            self._marks.mark()
        if late is None:
            yield from self._launch(shape, turn, graph)
        elif parts_wait:
            yield from self._queue(shape, turn, late)
        else:
            yield from self._launch(model, 0, graph)
            yield
            rows_of_tables = late()
            self._device.activate()
            self._loaded.inputs.write(rows_of_tables)
            self._loaded.symbols.set(shape.tokens, shape.seqs, shape.rows, shape.context_pages)
            self._loaded.samplers[shape.variant, shape.sampler, turn].queue()
            if shape.logprobs:
                self._loaded.logprobs[turn].queue()
        if self._marks is not None:
            self._marks.mark()
        inputs, in_parts = self._loaded.inputs, self._is_in_parts(shape)
        inputs.note_step(collected=in_parts)
        tokens = inputs.all_tokens(turn) if in_parts else inputs.next_tokens(turn)
        logprobs = inputs.all_logprobs(turn) if in_parts else inputs.logprobs(turn)
        return self._ring.fetch(tokens, rows, self, logprobs if shape.logprobs else None)

    def _launch(self, shape: StepShape, turn: int, graph: CudaGraph | None) -> Phases[None]:
        """Launch the model, and the sampler if there is one: by a CUDA graph where the shape has run before."""
        if graph is not None:
            graph.launch()
            return
        yield from self._queue(shape, turn)
        if self._use_graphs:
            self._decodes.note(shape)

    def _products(self, library: CublasLt, tokens: int) -> list[tuple[MatrixProduct, int]]:
        """The matrix products of a step of one sequence, in order, each with its rows."""
        variant = self._bundle.variant_for(tokens).name
        program = self._loaded.programs[variant]
        numbers = [
            number
            for number, place in enumerate(program.places)
            if isinstance(block_variant(self._bundle.manifest, place.block, variant).steps[place.index], Gemm)
        ]
        self._loaded.symbols.set(tokens, 1, 1, self._context_pages(tokens))
        with library.collect() as collected:
            program.queue(numbers)
        return collected

    def _graph(self, shape: StepShape, turn: int) -> CudaGraph | None:
        """The CUDA graph of a step, captured now if it is due; None for one that is launched kernel by kernel."""
        return self._decodes.graph(shape, turn, lambda: in_lockstep([self._queue(shape, turn)]))

    def _queue(self, shape: StepShape, turn: int, late: LateRows | None = None) -> Phases[None]:
        """Queue a step. Rows of many sequences are sampled part by part, as their logits are computed."""
        for part in self._queue_model(shape):
            if part is None:
                yield
                self._device.activate()
            if part is None or not shape.sampler:
                continue
            first, rows = part
            if late is not None and first == 0:
                yield
                rows_of_tables = late()
                self._device.activate()
                self._loaded.inputs.write(rows_of_tables)
            self._loaded.samplers[shape.variant, shape.sampler, turn].queue()
            if shape.logprobs:
                self._loaded.logprobs[turn].queue()
            if self._is_in_parts(shape):
                self._loaded.inputs.collect(turn, first, rows)
                if shape.logprobs:
                    self._loaded.inputs.collect_logprobs(turn, first, rows)

    def _queue_model(self, shape: StepShape) -> Iterator[tuple[int, int] | None]:
        """Queue the model. Yields the first row and the number of rows whose logits are the last to be queued.

        Also yields, None, behind each block of a model that has further ranks: a stream holds a thousand launches, and
        must not be full while another rank lacks those that it waits for.
        The logits of the next rows overwrite them. Samplers change the positions of the first rows, which no later row
        reads: `output_rows` is ascending.
        """
        program, symbols, most = (
            self._loaded.programs[shape.variant],
            self._loaded.symbols,
            self._rows_at_once,
        )
        for first in range(0, max(shape.rows, 1), most):
            rows = min(most, shape.rows - first)
            symbols.set(shape.tokens, shape.seqs, rows, shape.context_pages)
            if first == 0 and self._bundle.manifest.ranks > 1:
                for _ in program.queue_by_block():
                    yield None
            elif first == 0:
                program.queue()
            else:
                self._loaded.inputs.move_rows(first, rows)
                program.queue_last_block()
            yield first, rows

    def _is_in_parts(self, shape: StepShape) -> bool:
        """True when the logits of the rows are not all computed at once."""
        return shape.rows > self._rows_at_once


def _give_back_quietly(device: Device, stack: ExitStack) -> None:
    """Close the stack of a garbage-collected executor. Errors are dropped, since no caller could handle them."""
    with suppress(DeviceError):
        device.activate()
    with suppress(DeviceError):
        stack.close()
