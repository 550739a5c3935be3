"""Runs a bundle on several GPUs of one host: each has a rank of the model, and all run the same steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import cache, partial
from types import TracebackType
from typing import Self

from infernum.bundle import Bundle
from infernum.errors import DeviceError
from infernum.runtime.device import Device
from infernum.runtime.driver import gpu_count, load_kernels_at_once
from infernum.runtime.exchange import Exchange, check_ranks, words_exchanged
from infernum.runtime.executor import CudaExecutor
from infernum.runtime.gemm import CublasLt
from infernum.runtime.loading import LoadOptions, OpenLibrary
from infernum.runtime.lockstep import in_lockstep
from infernum.runtime.sampled import SampledTokens
from infernum.step import Batch, Float32, Sampling
from infernum.weights.source import Progress, TensorSource


class RanksExecutor:
    """One model on several GPUs, a rank on each. Not for use by several threads at the same time.

    The kernels of a step wait for those of the other ranks. So a step is uploaded, and its CUDA graphs are captured, on
    all GPUs before it is launched on any; it is launched block by block on all of them in turn; and nothing waits for
    it before it is launched on all. Every rank samples the same tokens; those of the first are read.
    """

    def __init__(
        self,
        bundle: Bundle,
        checkpoint: TensorSource | None,
        devices: Sequence[Device],
        options: LoadOptions,
        *,
        use_graphs: bool = True,
        progress: Progress | None = None,
        open_library: OpenLibrary = CublasLt,
    ) -> None:
        """Load a rank of `bundle` onto each of `devices`, which the executor closes, also when loading fails.

        Ranks may share a GPU, which then needs room for the kernels of all. Raises BundleError for a bundle that was
        not compiled for so many ranks, CheckpointError or DeviceError.
        """
        numbers = [device.facts.index for device in devices]
        shares_gpu = len(set(numbers)) < len(numbers)
        exchange: Exchange | None = None
        loaded: list[Future[CudaExecutor]] = []
        try:
            check_ranks(bundle.manifest, len(devices), str(bundle.folder))
            exchange = Exchange(devices, words_exchanged(bundle.manifest))
            sum_of_ranks = _sum_of_ranks(progress, len(devices))

            def load(rank: int, record: int) -> CudaExecutor:
                devices[rank].activate()
                return CudaExecutor(
                    bundle,
                    checkpoint,
                    devices[rank],
                    replace(options, rank=rank, exchange=record, shares_gpu=shares_gpu),
                    use_graphs=use_graphs,
                    progress=partial(sum_of_ranks, rank),
                    open_library=open_library,
                )

            # At once, so that what one rank reads of the checkpoint is still in memory when another reads it.
            with ThreadPoolExecutor(1 if shares_gpu else len(devices)) as pool:
                loaded = [pool.submit(load, rank, record) for rank, record in enumerate(exchange.records)]
            self._ranks = [each.result() for each in loaded]
        except BaseException:
            with suppress(DeviceError):  # the first error is the one to report
                _close([each.result() for each in loaded if each.exception() is None], exchange)
            for device in devices[len(loaded) :]:  # a rank that fails closes its own
                with suppress(DeviceError):
                    device.close()
            raise
        self._dropped = weakref.finalize(self, _close_quietly, self._ranks, exchange)
        self._dropped.atexit = False  # the driver frees everything when a process ends

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        checkpoint: TensorSource | None,
        *,
        device_indices: Sequence[int] | None = None,
        gpu_memory_utilization: float = 0.9,
        max_model_len: int | None = None,
        max_pages_total: int | None = None,
        use_graphs: bool = True,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> RanksExecutor:
        """Load `bundle` onto the first GPUs, one for each rank, or onto those of `device_indices`.

        Without a checkpoint, with random weights from `seed`. For the other options see `LoadOptions`.
        """
        load_kernels_at_once()
        ranks, visible = bundle.manifest.ranks, gpu_count()
        indices = range(ranks) if device_indices is None else device_indices
        if device_indices is None and ranks > visible:
            raise DeviceError(
                f"--tensor-parallel-size {ranks}: needs so many GPUs, and {visible} can be seen; see `infernum doctor`"
            )
        options = LoadOptions(gpu_memory_utilization, max_model_len, max_pages_total, seed)
        devices: list[Device] = []
        with ExitStack() as opened:
            for index in indices:
                devices.append(Device.open(index))
                opened.callback(devices[-1].close)
            opened.pop_all()  # the executor closes them
        return cls(bundle, checkpoint, devices, options, use_graphs=use_graphs, progress=progress)

    @property
    def page_size(self) -> int:
        """Positions in one page of the KV cache."""
        return self._ranks[0].page_size

    @property
    def num_pages(self) -> int:
        """Pages in the KV cache of every rank, of the layers without a window."""
        return min(rank.num_pages for rank in self._ranks)

    @property
    def windowed_pages(self) -> Mapping[int, int]:
        """Pages of the cache groups of layers with a window, by the window, on every rank."""
        every = [rank.windowed_pages for rank in self._ranks]
        return {window: min(pages[window] for pages in every) for window in every[0]}

    @property
    def max_batch_tokens(self) -> int:
        """Most tokens in one step."""
        return self._ranks[0].max_batch_tokens

    @property
    def dtype(self) -> str:
        """The element type that the model computes in."""
        return self._ranks[0].dtype

    @property
    def max_rows(self) -> int:
        """Most rows of logits in one step."""
        return self._ranks[0].max_rows

    def run(self, batch: Batch, sampling: Sampling) -> SampledTokens:
        """Run a step and sample one token for each row; returns while the step is running."""
        late = sampling.late
        if late is not None:  # it reads tokens and computes masks, once for all ranks
            sampling = replace(sampling, late=cache(late))
        return in_lockstep([rank.phases(batch, sampling) for rank in self._ranks])

    def advance(self) -> SampledTokens:
        """Run the next step of the last batch, as `CudaExecutor.advance` does."""
        return in_lockstep([rank.advance_phases() for rank in self._ranks])

    def warm_graphs(self, progress: Progress | None = None) -> None:
        """Capture the CUDA graphs of decodes of every size and sampler, as `CudaExecutor.warm_graphs` does."""
        self._ranks[0].warm_graphs(progress, self)

    def logits(self, batch: Batch) -> Float32:
        """Run a step and return its logits, float32 [rows, vocab], for at most `max_rows` rows."""
        return in_lockstep([rank.logits_phases(batch) for rank in self._ranks])

    def close(self) -> None:
        """Free device memory; the executor cannot be used afterwards."""
        finalizer = self._dropped.detach()
        if finalizer is not None:
            _, _, arguments, _ = finalizer
            _close(*arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The first error is the one to report.
        with suppress(DeviceError) if error is not None else nullcontext():
            self.close()


def _sum_of_ranks(progress: Progress | None, ranks: int) -> Callable[[int, int, int], None]:
    """The progress of all ranks together, from that of each: called with the rank, what is done and the total."""
    done, totals = [0] * ranks, [0] * ranks

    def report(rank: int, own: int, total: int) -> None:
        done[rank], totals[rank] = own, total
        if progress is not None:
            progress(sum(done), sum(each or total for each in totals))

    return report


def _close(ranks: Sequence[CudaExecutor], exchange: Exchange | None) -> None:
    """Free everything, once no kernel of any rank runs."""
    for rank in ranks:
        rank.synchronize()
    if exchange is not None:
        exchange.close()
    for rank in ranks:
        rank.close()


def _close_quietly(ranks: Sequence[CudaExecutor], exchange: Exchange | None) -> None:
    """Close the ranks of a garbage-collected executor. Errors are dropped, since no caller could handle them."""
    with suppress(DeviceError):
        _close(ranks, exchange)
