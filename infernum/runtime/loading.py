"""Loads a bundle onto a GPU: weights, memory and kernels, bound into programs that are ready to be queued."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from infernum.bundle import Bundle
from infernum.cache_groups import cache_groups, stage_windows
from infernum.errors import BundleError
from infernum.manifest import EXCHANGE, BlockVariant, Gemm, Launch, Manifest, VariantSpec
from infernum.runtime.binding import BoundProgram, ProductLibrary, Symbols
from infernum.runtime.device import Device, DeviceMemory
from infernum.runtime.exchange import check_ranks
from infernum.runtime.inputs import Inputs
from infernum.runtime.kv_cache import KV, POISON, KvCache, count_pages, plan_cache
from infernum.runtime.layout import Limits, StreamPlan, block_variant, check_arch, plan_streams, step_limits
from infernum.runtime.modules import Module
from infernum.runtime.sampled import TURNS
from infernum.runtime.stream import Stream
from infernum.runtime.weights import fill_weights
from infernum.step import LOGPROBS
from infernum.weights.plan import WeightPlan, plan_weights
from infernum.weights.source import Progress, TensorSource

OpenLibrary = Callable[[Device, Stream], ProductLibrary]


@dataclass(frozen=True)
class LoadOptions:
    """How a bundle uses the GPU.

    gpu_memory_utilization  share of the GPU's memory that may be in use once the KV cache is allocated
    max_model_len           longest sequence in tokens, which must fit the KV cache; None: the model's context
    max_pages_total         most KV cache pages of a cache group; None: as many as fit
    seed                    of the random weights that are used when there is no checkpoint
    rank                    the part of the model, of as many as the bundle was compiled for
    exchange                address of the rank's record of what ranks exchange (`infernum.runtime.exchange`); 0: there
                            is one rank
    shares_gpu              another rank has the same GPU: a kernel that starts early could keep it from the kernels
                            that it waits for
    """

    gpu_memory_utilization: float = 0.9
    max_model_len: int | None = None
    max_pages_total: int | None = None
    seed: int = 0
    rank: int = 0
    exchange: int = 0
    shares_gpu: bool = False


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of GPU memory by purpose."""

    weights: int
    kv_cache: int
    arena: int
    streams: int
    inputs: int


@dataclass(frozen=True)
class LoadedBundle:
    """Everything that steps need.

    pages     of each cache group, by its window; no sequence owns the page behind them
    programs  by variant
    samplers  by variant, sampler and turn (`TokenRing.next_turn`)
    logprobs  by turn; empty where the bundle lacks the block
    products  the matrix product library; None when no step has a product
    weights   address of the weights on the GPU
    logits    address of the logits of a step
    """

    limits: Limits
    symbols: Symbols
    inputs: Inputs
    pages: dict[int, int]
    programs: dict[str, BoundProgram]
    samplers: dict[tuple[str, str, int], BoundProgram]
    logprobs: list[BoundProgram]
    products: ProductLibrary | None
    weights: int
    logits: int
    memory: MemoryUse


def load_bundle(
    bundle: Bundle,
    checkpoint: TensorSource | None,
    device: Device,
    stream: Stream,
    options: LoadOptions,
    open_library: OpenLibrary,
    stack: ExitStack,
    progress: Progress | None = None,
) -> LoadedBundle:
    """Load `bundle` onto `device`; `stack` frees everything. Returns once the weights are on the GPU.

    Raises BundleError, CheckpointError or DeviceError, which name the two parts that do not fit together.
    """
    manifest = bundle.manifest
    check_arch(bundle, device.facts.arch, device.facts.name)
    limits = step_limits(manifest, options.max_model_len)
    if not options.exchange:
        check_ranks(manifest, 1, str(bundle.folder))
    weight_plan = plan_weights(manifest, options.rank)
    stream_plan = plan_streams(manifest, limits)
    cache_plan = plan_cache(manifest)
    _check_logits(manifest)

    loader = _Loader(bundle, device, stream, stack)
    weights = loader.weights(weight_plan, checkpoint, options.seed, progress)
    arena_bytes = max(variant.arena_bytes for variant in _variants(manifest))
    arena = loader.poisoned(arena_bytes, "intermediate tensors")
    streams = loader.poisoned(stream_plan.total_bytes, "tensors between blocks")
    length = options.max_model_len or manifest.model.context
    windows = stage_windows(manifest, length)
    groups = cache_groups(windows, cache_plan.page_bytes)
    in_order = [group.window for group in groups]
    inputs = Inputs(device, stream, limits, stack, groups=len(groups))
    modules = loader.modules()
    products = loader.products(open_library)

    free, total = device.memory()
    pages = count_pages(
        groups,
        page_size=manifest.page_size,
        chunk=limits.tokens,
        sequences=limits.rows,
        length=length,
        free=free,
        total=total,
        utilization=options.gpu_memory_utilization,
        need_tokens=options.max_model_len or 1,
        max_pages=options.max_pages_total,
    )
    group_of = {stage: in_order.index(window) for stage, window in windows.items()}
    cache = KvCache(cache_plan, {stage: pages[group] for stage, group in group_of.items()})
    stack.callback(cache.close)
    cache.allocate(device, stream)

    symbols = Symbols(max_pages=limits.max_pages, pages=pages[0], sms=device.facts.sms)
    binder = _AddressBinder(
        manifest=manifest,
        weight_plan=weight_plan,
        stream_plan=stream_plan,
        weights=weights.address,
        arena=arena.address,
        streams=streams.address,
        inputs=inputs,
        cache=cache,
        groups=group_of,
        modules=modules,
        exchange=options.exchange,
    )
    bound = partial(BoundProgram, stream, symbols, products, starts_early=not options.shares_gpu)
    programs: dict[str, BoundProgram] = {}
    samplers: dict[tuple[str, str, int], BoundProgram] = {}
    for variant in manifest.variants:
        programs[variant.name] = binder.program(variant, bound())
    for block in (block for name in manifest.samplers for block in manifest.blocks[name].values()):
        for turn in range(TURNS):
            sampler = binder.sampler(block, turn, bound())
            samplers |= {
                (variant.name, block.block, turn): sampler
                for variant in manifest.variants
                if block_variant(manifest, block.block, variant.name) is block
            }
    logprobs = [
        binder.logprobs(block, turn, bound())
        for block in manifest.blocks.get(LOGPROBS, {}).values()
        for turn in range(TURNS)
    ]
    stream.synchronize()
    return LoadedBundle(
        limits=limits,
        symbols=symbols,
        inputs=inputs,
        pages=dict(zip(in_order, pages, strict=True)),
        programs=programs,
        samplers=samplers,
        logprobs=logprobs,
        products=products,
        weights=weights.address,
        logits=streams.address + stream_plan.outputs(len(manifest.program) - 1)[0],
        memory=MemoryUse(weights.nbytes, cache.nbytes, arena.nbytes, streams.nbytes, inputs.nbytes),
    )


def _variants(manifest: Manifest) -> list[BlockVariant]:
    return [variant for block in manifest.blocks.values() for variant in block.values()]


def _check_logits(manifest: Manifest) -> None:
    for variant in manifest.variants:
        out = block_variant(manifest, manifest.program[-1].block, variant.name).stream_out
        if [(spec.dtype, spec.shape) for spec in out] != [("f32", ["rows", manifest.model.vocab_size])]:
            raise BundleError(
                f"{manifest.program[-1].block}.{variant.name}: the last block must give logits"
                f" f32 [rows, {manifest.model.vocab_size}], not {out}"
            )


class _Loader:
    """Allocates and fills the memory of a bundle; one stack frees it all."""

    def __init__(self, bundle: Bundle, device: Device, stream: Stream, stack: ExitStack) -> None:
        self._bundle = bundle
        self._device = device
        self._stream = stream
        self._stack = stack

    def weights(
        self, plan: WeightPlan, checkpoint: TensorSource | None, seed: int, progress: Progress | None
    ) -> DeviceMemory:
        memory = self._device.alloc(plan.total_bytes, "the weights")
        self._stack.callback(memory.free)
        fill_weights(
            plan, checkpoint, memory.address, self._device, self._stream, seed=seed, progress=progress
        )
        return memory

    def poisoned(self, nbytes: int, what: str) -> DeviceMemory:
        """Memory full of NaN, so that a read of an unwritten element gives NaN."""
        memory = self._device.alloc(nbytes, what)
        self._stack.callback(memory.free)
        self._stream.fill(memory.address, POISON, max(nbytes, 1))
        return memory

    def modules(self) -> dict[tuple[str, str], Module]:
        """The loaded cubin of every block variant that launches kernels."""
        loaded: dict[tuple[str, str], Module] = {}
        for variant in _variants(self._bundle.manifest):
            if any(isinstance(step, Launch) for step in variant.steps):
                module = self._device.load_module(self._bundle.read(variant.cubin), variant.cubin)
                self._stack.callback(module.close)
                loaded[variant.block, variant.variant] = module
        return loaded

    def products(self, open_library: OpenLibrary) -> ProductLibrary | None:
        """The matrix product library; None when no step has a product."""
        if not any(isinstance(step, Gemm) for v in _variants(self._bundle.manifest) for step in v.steps):
            return None
        library = open_library(self._device, self._stream)
        self._stack.callback(library.close)
        return library


@dataclass(frozen=True)
class _AddressBinder:
    """Binds the stages of a program to the addresses of their tensors."""

    manifest: Manifest
    weight_plan: WeightPlan
    stream_plan: StreamPlan
    weights: int
    arena: int
    streams: int
    inputs: Inputs
    cache: KvCache
    groups: dict[int, int]
    modules: dict[tuple[str, str], Module]
    exchange: int

    def program(self, spec: VariantSpec, bound: BoundProgram) -> BoundProgram:
        """All stages of the model, bound into `bound`."""
        for index, stage in enumerate(self.manifest.program):
            block = block_variant(self.manifest, stage.block, spec.name)
            addresses = self._common(block)
            for name, weight in block.weights.items():
                addresses[name] = self.weights + self.weight_plan.offset(weight, stage)
            for tensor, offset in zip(block.stream_in, self.stream_plan.inputs(index), strict=False):
                addresses[tensor.name] = self.streams + offset
            for tensor, offset in zip(block.stream_out, self.stream_plan.outputs(index), strict=False):
                addresses[tensor.name] = self.streams + offset
            if block.state:
                addresses[KV] = self.cache.address(index)
                addresses["page_table"] = self.inputs.page_table(self.groups[index])
            bound.append(block, self.modules.get((block.block, block.variant)), addresses, stage.layer)
        return bound

    def sampler(self, block: BlockVariant, turn: int, bound: BoundProgram) -> BoundProgram:
        """One sampler, bound into `bound`. It reads logits, and writes the sampled tokens and input arrays.

        The first output is the sampled tokens, written to the token buffer of `turn`; the other outputs are input
        arrays, by name.
        """
        if not block.stream_out:
            raise BundleError(f"{block.block}.{block.variant}: a sampler must give a token for each row")
        addresses = self._common(block)
        sampled, *updated = block.stream_out
        self.inputs.check(updated, block.block)
        addresses[sampled.name] = self.inputs.next_tokens(turn)
        for tensor in updated:
            addresses[tensor.name] = self.inputs.addresses[tensor.name]
        logits = self.stream_plan.inputs(len(self.manifest.program))
        for tensor, offset in zip(block.stream_in, logits, strict=False):
            addresses[tensor.name] = self.streams + offset
        bound.append(block, self.modules.get((block.block, block.variant)), addresses)
        return bound

    def logprobs(self, block: BlockVariant, turn: int, bound: BoundProgram) -> BoundProgram:
        """The block of log-probabilities, bound into `bound`. It reads logits and the tokens of the sampler."""
        addresses = self._common(block)
        logits = self.streams + self.stream_plan.inputs(len(self.manifest.program))[0]
        read = (logits, self.inputs.next_tokens(turn))
        for tensor, address in zip(block.stream_in, read, strict=True):
            addresses[tensor.name] = address
        for tensor, address in zip(block.stream_out, self.inputs.logprobs(turn), strict=True):
            addresses[tensor.name] = address
        bound.append(block, self.modules.get((block.block, block.variant)), addresses)
        return bound

    def _common(self, block: BlockVariant) -> dict[str, int]:
        self.inputs.check(block.batch, block.block)
        _check_names(block)
        addresses = {tensor.name: self.inputs.addresses[tensor.name] for tensor in block.batch}
        addresses |= {EXCHANGE: self.exchange} if self.exchange else {}
        return addresses | {name: self.arena + buffer.offset for name, buffer in block.buffers.items()}


def _check_names(block: BlockVariant) -> None:
    """Raises BundleError when two tensors of a block have one name: a pointer to it would be ambiguous."""
    streams = [tensor.name for tensor in (*block.stream_in, *block.stream_out)]
    updated_by_sampler = {t.name for t in block.stream_out} & {t.name for t in block.batch}
    names = [*streams, *(t.name for t in (*block.batch, *block.state)), *block.buffers, *block.weights]
    twice = {name for name in names if names.count(name) > 1} - updated_by_sampler
    if twice:
        raise BundleError(
            f"{block.block}.{block.variant}: several tensors are called {sorted(twice)}; compile it again"
        )
