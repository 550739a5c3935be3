"""The paged KV cache on the GPU: how many pages fit, and where the pages of each layer lie."""

from __future__ import annotations

from dataclasses import dataclass

from infernum import dims, dtypes
from infernum.errors import BundleError, DeviceError
from infernum.manifest import Manifest, TensorSpec
from infernum.runtime.device import Device, DeviceMemory
from infernum.runtime.stream import Stream

KV = "kv"
POISON = 0xFF
"""Byte that fills memory before any kernel writes it: NaN in every float type, −1 in every integer type."""

_MIB = 2**20


@dataclass(frozen=True)
class CachePlan:
    """`page_bytes`: bytes of one page of each stage that has a cache, by the index of the stage in the program."""

    page_bytes: dict[int, int]

    @property
    def total_page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return sum(self.page_bytes.values())


def plan_cache(manifest: Manifest) -> CachePlan:
    """The caches that the program needs. Raises BundleError when two variants of a block need different caches."""
    page_bytes: dict[int, int] = {}
    for index, stage in enumerate(manifest.program):
        sizes = {
            sum(_page_bytes(spec, stage.block) for spec in variant.state)
            for variant in manifest.blocks[stage.block].values()
        }
        if len(sizes) != 1:
            raise BundleError(
                f"{stage.block}: its variants disagree about the KV cache; compile the model again"
            )
        size = sizes.pop()
        if size:
            page_bytes[index] = size
    return CachePlan(page_bytes)


def _page_bytes(spec: TensorSpec, block: str) -> int:
    if spec.name != KV or not spec.shape or spec.shape[0] != "pages":
        raise BundleError(
            f"{block}: state {spec.name!r} of shape {spec.shape} is unknown to this version of the runtime"
        )
    elements = 1
    for dim in spec.shape[1:]:
        elements *= dims.evaluate(dim, {})
    return elements * dtypes.dtype(spec.dtype).bytes


def count_pages(
    plan: CachePlan,
    *,
    page_size: int,
    free: int,
    total: int,
    utilization: float,
    need_tokens: int,
    max_pages: int | None,
) -> int:
    """How many pages to allocate so that at most `utilization` of the GPU's memory is in use afterwards.

    `need_tokens` is the length that one sequence must be able to reach; the result is at most `max_pages`. Raises
    DeviceError when too few pages for that length fit.
    """
    needed = dims.ceildiv(max(need_tokens, 1), page_size)
    cost = plan.total_page_bytes
    if cost == 0:
        return max_pages or needed
    budget = int(total * utilization) - (total - free)
    pages = max(0, budget) // cost - 1  # `KvCache` has a scratch page besides
    if max_pages is not None and max_pages < needed:
        raise DeviceError(
            f"KV cache: {max(need_tokens, 1)} tokens need {needed} pages, and no more than {max_pages} are allowed;"
            " raise max_pages_total or lower --max-model-len"
        )
    if max_pages is not None:
        pages = min(pages, max_pages)
    if pages < needed:
        raise DeviceError(
            f"KV cache: {max(need_tokens, 1)} tokens need {needed} pages of {cost / _MIB:.2f} MiB;"
            f" {pages} fit in {max(0, budget) / _MIB:.0f} MiB"
            f" ({utilization:.0%} of {total / _MIB:.0f} MiB less what is in use);"
            " lower --max-model-len, raise --gpu-memory-utilization or free GPU memory"
        )
    return pages


class KvCache:
    """One allocation of `pages` pages, and a scratch page behind them, for each stage that keeps a cache.

    No sequence owns the scratch page. The rows that pad a decode write there.
    """

    def __init__(self, plan: CachePlan, pages: int) -> None:
        self.pages = pages
        self.scratch_page = pages
        self.nbytes = plan.total_page_bytes * (pages + 1)
        self._plan = plan
        self._memory: dict[int, DeviceMemory] = {}

    def allocate(self, device: Device, stream: Stream) -> None:
        """Allocate the pages and fill them with `POISON`: a read before a write gives NaN. Raises DeviceError."""
        for stage, page_bytes in self._plan.page_bytes.items():
            memory = device.alloc(page_bytes * (self.pages + 1), "the KV cache")
            self._memory[stage] = memory
            stream.fill(memory.address, POISON, memory.nbytes)

    def address(self, stage: int) -> int:
        """Address of the first page of the program's stage number `stage`."""
        return self._memory[stage].address

    def close(self) -> None:
        for memory in self._memory.values():
            memory.free()
        self._memory.clear()
