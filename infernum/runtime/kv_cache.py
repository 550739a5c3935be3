"""The paged KV cache on the GPU: how many pages fit, and where the pages of each layer lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infernum import dims, dtypes
from infernum.cache_groups import CacheGroup, cache_groups, divide_pages, most_pages, stage_windows
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


def sequence_bytes(manifest: Manifest, length: int) -> int:
    """Bytes of the KV cache that a sequence of `length` tokens has, of layers with a window only what they read."""
    groups = cache_groups(stage_windows(manifest, length), plan_cache(manifest).page_bytes)
    return sum(most_pages(group.window, length, 1, manifest.page_size) * group.page_bytes for group in groups)


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
    groups: Sequence[CacheGroup],
    *,
    page_size: int,
    chunk: int,
    sequences: int,
    length: int,
    need_tokens: int,
    free: int,
    total: int,
    utilization: float,
    max_pages: int | None,
) -> list[int]:
    """How many pages each cache group gets, so that at most `utilization` of the GPU's memory is in use afterwards.

    `divide_pages` divides them, for a longest sequence of `length` tokens if that fits. `need_tokens` is the length
    that one sequence must be able to reach. No group gets more than `max_pages`. Raises DeviceError when too few pages
    for that length fit.
    """
    need_tokens = max(need_tokens, 1)
    needed = [most_pages(group.window, need_tokens, chunk, page_size) for group in groups]
    if max_pages is not None and max_pages < max(needed):
        raise DeviceError(
            f"KV cache: {need_tokens} tokens need {max(needed)} pages, and no more than {max_pages} are allowed;"
            " raise max_pages_total or lower --max-model-len"
        )
    scratch = sum(group.page_bytes for group in groups)  # `KvCache` has a page besides, of each stage
    budget = max(0, int(total * utilization) - (total - free) - scratch)
    for longest in (length, need_tokens):
        pages = divide_pages(
            groups,
            budget,
            page_size=page_size,
            chunk=chunk,
            length=longest,
            sequences=sequences,
            most=max_pages,
        )
        if pages is not None:
            return pages
    parts = [
        f"{count} pages of {group.page_bytes / _MIB:.2f} MiB"
        for count, group in zip(needed, groups, strict=True)
        if group.page_bytes
    ]
    fit = f"{budget // groups[0].page_bytes} fit in " if len(groups) == 1 else "the cache may have "
    raise DeviceError(
        f"KV cache: {need_tokens} tokens need {' and '.join(parts)};"
        f" {fit}{budget / _MIB:.0f} MiB"
        f" ({utilization:.0%} of {total / _MIB:.0f} MiB less what is in use);"
        " lower --max-model-len, raise --gpu-memory-utilization or free GPU memory"
    )


class KvCache:
    """For each stage that has a cache, one allocation of `pages[stage]` pages and a scratch page behind them.

    No sequence owns a scratch page. The rows that pad a decode write there.
    """

    def __init__(self, plan: CachePlan, pages: Mapping[int, int]) -> None:
        self.nbytes = sum(page_bytes * (pages[stage] + 1) for stage, page_bytes in plan.page_bytes.items())
        self._plan = plan
        self._pages = pages
        self._memory: dict[int, DeviceMemory] = {}

    def allocate(self, device: Device, stream: Stream) -> None:
        """Allocate the pages and fill them with `POISON`: a read before a write gives NaN. Raises DeviceError."""
        for stage, page_bytes in self._plan.page_bytes.items():
            memory = device.alloc(page_bytes * (self._pages[stage] + 1), "the KV cache")
            self._memory[stage] = memory
            stream.fill(memory.address, POISON, memory.nbytes)

    def address(self, stage: int) -> int:
        """Address of the first page of the program's stage number `stage`."""
        return self._memory[stage].address

    def close(self) -> None:
        for memory in self._memory.values():
            memory.free()
        self._memory.clear()
