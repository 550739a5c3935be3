"""Sizes and offsets of the buffers of a step, besides weights and KV cache; pure arithmetic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from infernum import dims, dtypes
from infernum.bundle import Bundle
from infernum.errors import BundleError
from infernum.manifest import ANY, BlockVariant, Manifest, TensorSpec, VariantSpec
from infernum.roofline import MOST_DECODES

ALIGNMENT = 256


@dataclass(frozen=True)
class Limits:
    """Sizes of the largest step that an executor accepts. `max_pages` is the number of columns of the page table."""

    tokens: int
    seqs: int
    rows: int
    max_pages: int
    vocab: int


def step_limits(manifest: Manifest, max_model_len: int | None) -> Limits:
    """The limits of a bundle. Raises BundleError when `max_model_len` exceeds the context it was compiled for."""
    context = manifest.model.context
    length = context if max_model_len is None else max_model_len
    if not 1 <= length <= context:
        raise BundleError(
            f"--max-model-len {length}: this bundle was compiled for contexts of 1 to {context} tokens"
        )
    tokens = max(variant.max_tokens for variant in manifest.variants)
    return Limits(
        tokens=tokens,
        seqs=min(MOST_DECODES, tokens),
        rows=min(MOST_DECODES, tokens),
        max_pages=dims.ceildiv(length, manifest.page_size),
        vocab=manifest.model.vocab_size,
    )


def check_arch(bundle: Bundle, gpu_arch: tuple[int, int], gpu_name: str) -> None:
    """Raises BundleError when the GPU cannot run cubins of the bundle's architecture.

    `sm_80` runs on any 8.x from 8.0; `sm_90a` on 9.0 alone (CUDA programming
    guide, binary compatibility and feature sets).
    """
    arch = bundle.arch
    parsed = re.fullmatch(r"sm_(\d+)(\d)([af]?)", arch)
    if parsed is None:
        raise BundleError(f"{bundle.folder}: unknown architecture {arch!r}; compile the model again")
    compiled = (int(parsed[1]), int(parsed[2]))
    exact = parsed[3] == "a"
    if gpu_arch == compiled or (not exact and gpu_arch[0] == compiled[0] and gpu_arch[1] >= compiled[1]):
        return
    raise BundleError(
        f"{bundle.folder}: compiled for {arch}, and {gpu_name} is sm_{gpu_arch[0]}{gpu_arch[1]};"
        f" run `infernum compile {bundle.manifest.model.name} --arch native -o {bundle.folder}`"
    )


def block_variant(manifest: Manifest, block: str, variant: str) -> BlockVariant:
    """The compiled variant of `block` that steps of `variant` run. Raises BundleError when the bundle lacks it."""
    compiled = manifest.blocks.get(block, {})
    serving = compiled.get(variant, compiled.get(ANY))
    if serving is None:
        raise BundleError(
            f"the bundle has no block {block!r} for variant {variant!r}; compile the model again"
        )
    return serving


def tensor_bytes(spec: TensorSpec, symbols: Mapping[str, int]) -> int:
    """Bytes of a tensor under the given values of symbols."""
    count = dtypes.dtype(spec.dtype).bytes
    for dim in spec.shape:
        count *= dims.evaluate(dim, symbols)
    return count


def largest_symbols(variant: VariantSpec, limits: Limits) -> dict[str, int]:
    """The values of symbols in the largest step of a variant."""
    tokens = variant.max_tokens
    return {
        "tokens": tokens,
        "seqs": min(limits.seqs, tokens),
        "rows": variant.max_rows,
        "max_pages": limits.max_pages,
    }


@dataclass(frozen=True)
class StreamPlan:
    """Two sets of buffers for the tensors between stages: even stages write set 0, odd stages set 1.

    A stage thus never writes a buffer that it reads. `offsets[parity][position]` counts from a common start.
    """

    offsets: tuple[tuple[int, ...], tuple[int, ...]]
    total_bytes: int

    def outputs(self, stage: int) -> tuple[int, ...]:
        """Offsets of the tensors that stage number `stage` writes, by position."""
        return self.offsets[stage % 2]

    def inputs(self, stage: int) -> tuple[int, ...]:
        """Offsets of the tensors that stage number `stage` reads, which the stage before it wrote."""
        return self.offsets[(stage - 1) % 2]


def plan_streams(manifest: Manifest, limits: Limits) -> StreamPlan:
    """Lay out the tensors between stages. Raises BundleError when a stage reads other tensors than were written."""
    sizes: tuple[list[int], list[int]] = ([], [])
    for variant in manifest.variants:
        symbols = largest_symbols(variant, limits)
        feeder: list[TensorSpec] = []
        for index, stage in enumerate(manifest.program):
            block = block_variant(manifest, stage.block, variant.name)
            check_feed(feeder, block)
            mine = sizes[index % 2]
            for position, spec in enumerate(block.stream_out):
                if position == len(mine):
                    mine.append(0)
                mine[position] = max(mine[position], tensor_bytes(spec, symbols))
            feeder = block.stream_out
        for name in manifest.samplers:
            check_feed(feeder, block_variant(manifest, name, variant.name))
    even, end = pack(sizes[0], at=0)
    odd, end = pack(sizes[1], at=end)
    return StreamPlan((even, odd), end)


def check_feed(feeder: list[TensorSpec], block: BlockVariant) -> None:
    """Raises BundleError unless `block` reads, by position, the types and shapes of the tensors in `feeder`."""
    written = [(spec.dtype, spec.shape) for spec in feeder]
    read = [(spec.dtype, spec.shape) for spec in block.stream_in]
    if written != read:
        raise BundleError(
            f"{block.block}.{block.variant}: is fed {written} but reads {read}; compile the model again"
        )


def pack(sizes: list[int], *, at: int) -> tuple[tuple[int, ...], int]:
    """Offsets of buffers of the given sizes, laid aligned one after the other from `at`, and their end."""
    offsets: list[int] = []
    for size in sizes:
        offsets.append(at)
        at += dims.ceildiv(size, ALIGNMENT) * ALIGNMENT
    return tuple(offsets), at
