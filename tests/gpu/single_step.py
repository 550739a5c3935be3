"""Runs one node of a compiled block at a time, and compares what its kernels wrote with its NumPy meaning.

Every node gets operands of its own: random numbers rounded to their storage type, laid out in memory as the
block lays them out (a slice of columns lies within its wider row), everything else full of NaN. Because a node
never reads what another kernel wrote, errors neither add up nor cancel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

import infernum.ops  # noqa: F401 - fills the registry
from infernum import dims, dtypes
from infernum.bundle import BlockVariant, Bundle, Gemm, Launch, Pointer, Step, TensorSpec
from infernum.codegen.places import Place, is_free, places_of
from infernum.dtypes import BF16, DType, relative_error, round_to
from infernum.ir.block import PAGE
from infernum.ir.graph import Graph, Input, Node, TensorType, Value
from infernum.ir.kernel import Template
from infernum.ir.op import OPS, Fused, Op
from infernum.ir.text import parse_graph
from infernum.runtime.binding import BoundProgram, Symbols

Array = np.ndarray[Any, Any]
Flat = tuple[str, int, int]
"""Where a value lies, whatever its shape: tensor, first column of a row, columns."""

POISON = 0xFF
"""NaN in every float type, -1 in every integer type."""

ALIGNMENT = 256
GUARD = 4096
"""Poisoned bytes after each tensor, in which nothing may be written."""


# Facts: the ragged batch of a step.


@dataclass(frozen=True)
class Facts:
    """One step: the values of symbols, the batch arrays by name, and how the sequences lie in the cache.

    Sequence s has `starts[s]` positions in the cache before the step and `ends[s]` after it.
    """

    symbols: dict[str, int]
    arrays: dict[str, Array]
    starts: tuple[int, ...]
    ends: tuple[int, ...]


LENGTHS: dict[int, tuple[int, ...]] = {
    1: (1,),
    2: (1, 1),
    5: (3, 1, 1),
    8: (1,) * 8,
    9: (2, 6, 1),
    33: (1, 17, 1, 13, 1),
    64: (1,) * 60 + (4,),
    65: (65,),
    130: (1, 70, 58, 1),
    200: (131, 1, 67, 1),
}
"""New tokens of each sequence, for every number of tokens that is tried: decodes, chunks of prompts, and both."""

STARTS = (211, 64, 0, 130, 63, 37, 255, 5, 100)
"""Positions that sequences have behind them; with the lengths above, contexts of up to five pages."""

_SPARE_COLUMNS, _SPARE_PAGES = 2, 3


def ragged_step(tokens: int, vocab: int, rng: np.random.Generator) -> Facts:
    """A step of `tokens` new tokens in several sequences, their pages in random order among unused ones.

    Rows of logits are wanted for every token when `tokens` is even, else for the last one of each sequence.
    """
    lengths = LENGTHS[tokens]
    starts = tuple(STARTS[i % len(STARTS)] for i in range(len(lengths)))
    ends = tuple(start + length for start, length in zip(starts, lengths, strict=True))
    query_start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    rows = np.arange(tokens) if tokens % 2 == 0 else query_start[1:] - 1

    counts = [dims.ceildiv(end, PAGE) for end in ends]
    pages = sum(counts) + _SPARE_PAGES
    shuffled = iter(rng.permutation(pages))
    page_table = np.full((len(lengths), max(counts) + _SPARE_COLUMNS), -1, np.int32)
    for row, count in enumerate(counts):
        page_table[row, :count] = [next(shuffled) for _ in range(count)]

    batch = {
        "token_ids": rng.integers(0, vocab, tokens),
        "positions": np.concatenate([np.arange(s, e) for s, e in zip(starts, ends, strict=True)]),
        "sequence": np.repeat(np.arange(len(lengths)), lengths),
        "query_start": query_start,
        "page_table": page_table,
        "output_rows": rows,
    }
    symbols = {
        "tokens": tokens,
        "seqs": len(lengths),
        "rows": len(rows),
        "max_pages": page_table.shape[1],
        "pages": pages,
    }
    arrays = {name: array.astype(np.int32) for name, array in batch.items()} | _sampling(
        len(rows), vocab, rng
    )
    return Facts(symbols, arrays, starts, ends)


def _sampling(rows: int, vocab: int, rng: np.random.Generator) -> dict[str, Array]:
    """Sampling parameters that differ from row to row, each feature on in some rows and off in others."""

    def cycle(values: Sequence[float], dtype: type) -> Array:
        return np.resize(np.array(values, dtype), rows)

    seen = rng.integers(0, 2**32, (rows, dims.ceildiv(vocab, 32)), np.uint32)
    seen &= rng.integers(0, 2**32, seen.shape, np.uint32)  # a quarter of the tokens
    if vocab % 32:
        seen[:, -1] &= np.uint32((1 << vocab % 32) - 1)
    return {
        "temperature": cycle((0.8, 0.0, 1.0, 0.3, 2.0, 0.7, 1.3), np.float32),
        "top_k": cycle((0, 5, 0, 1, 40, 0, 10**6, 3), np.int32),
        "top_p": cycle((1.0, 0.9, 0.5, 1.0, 0.99), np.float32),
        "min_p": cycle((0.0, 0.05, 0.0, 0.5), np.float32),
        "repetition_penalty": cycle((1.0, 1.3, 0.7), np.float32),
        "seed": rng.integers(-(2**31), 2**31, rows).astype(np.int32),
        "seen": seen.view(np.int32),
    }


# Units: the nodes of a block with the steps that compute them.


@dataclass(frozen=True)
class Unit:
    """One node of a block's graph that kernels compute, and the manifest's steps that do it."""

    bundle: Bundle
    variant: BlockVariant
    graph: Graph
    places: Mapping[Value, Place] = field(repr=False)
    node: Node
    steps: tuple[Step, ...]
    templates: tuple[str, ...]

    def __str__(self) -> str:
        kernels = " + ".join(s.kernel if isinstance(s, Launch) else s.name for s in self.steps)
        return f"{self.variant.block}.{self.variant.variant}: %{self.node.name} by {kernels}"

    @property
    def ops(self) -> frozenset[str]:
        """The primitive ops that the node computes, views among them."""
        op = self.node.op
        return frozenset(n.op.name for n in op.body.calls) if isinstance(op, Fused) else frozenset([op.name])

    @property
    def rules(self) -> frozenset[str]:
        """The rules that made the node."""
        return frozenset(self.node.op.rules) if isinstance(self.node.op, Fused) else frozenset()

    @property
    def results(self) -> list[Value]:
        return [Value(self.node.name, i) for i in range(len(self.node.types))]

    @property
    def tolerance(self) -> float:
        """That of the coarsest float type that anything within the node is rounded to."""
        nodes = [self.node, *(self.node.op.body.calls if isinstance(self.node.op, Fused) else ())]
        return max(type_.dtype.tolerance for node in nodes for type_ in node.types)

    @property
    def tensors(self) -> list[str]:
        """The tensors that the steps name, in order of first use."""
        return list(dict.fromkeys(name for step in self.steps for name in _named(step)))


def units_of(bundle: Bundle, variant: BlockVariant) -> list[Unit]:
    """Every node of a block variant that is not a mere view, with its steps; all steps belong to some node."""
    graph = parse_graph(bundle.read(variant.graph).decode())
    places = places_of(graph)
    kernels = {kernel.name: kernel for kernel in variant.kernels}
    left = list(variant.steps)
    units: list[Unit] = []
    for node in (n for n in graph.calls if not is_free(n)):
        steps = [left.pop(0)]
        while isinstance(steps[-1], Launch) and left and isinstance(left[0], Launch):
            follower = _followers().get(kernels[steps[-1].kernel].template)
            if follower is None or kernels[left[0].kernel].template != follower:
                break
            steps.append(left.pop(0))
        templates = [kernels[s.kernel].template for s in steps if isinstance(s, Launch)]
        unit = Unit(bundle, variant, graph, places, node, tuple(steps), tuple(templates))
        for value in unit.results:
            assert places[value].tensor in unit.tensors, f"{unit}: does not write {value}"
        units.append(unit)
    assert not left, f"{variant.block}.{variant.variant}: steps {left} belong to no node"
    return units


@lru_cache
def _followers() -> dict[str, str]:
    """For a template that is launched together with another of its op: the one after it."""
    found: dict[str, str] = {}
    for op in OPS.values():
        for spec in op.emit if isinstance(op.emit, tuple) else ():
            while isinstance(spec, Template) and spec.then is not None:
                found[spec.name] = spec.then.name
                spec = spec.then
    return found


def _named(step: Step) -> Iterator[str]:
    match step:
        case Launch():
            yield from (arg.tensor for arg in step.args if isinstance(arg, Pointer))
        case Gemm():
            operands = (step.x, step.weight, step.bias, step.residual, step.out)
            yield from (pointer.tensor for pointer in operands if pointer is not None)


def spec_of(unit: Unit, name: str) -> TensorSpec:
    """Type and shape of a tensor that the steps of a unit name."""
    variant = unit.variant
    listed = (*variant.stream_in, *variant.stream_out, *variant.batch, *variant.state)
    specs = {spec.name: spec for spec in listed}
    specs |= {n: b.spec for n, b in variant.buffers.items()} | {n: w.spec for n, w in variant.weights.items()}
    assert name in specs, f"{unit}: names a tensor {name!r} that the manifest does not describe"
    return specs[name]


# Values: what operands hold.


def to_bits(values: Array, dtype: DType) -> Array:
    """Float32 (or integer) values that `dtype` can store, as the bits that it stores: uint16 or uint32."""
    if dtype is BF16:
        return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return np.ascontiguousarray(values).astype(dtype.numpy, copy=False).view(bits_of(dtype))


def from_bits(bits: Array, dtype: DType) -> Array:
    """The inverse of `to_bits`: float32, or integers as they are."""
    if dtype is BF16:
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    values = np.ascontiguousarray(bits).view(dtype.numpy)
    return values.astype(np.float32) if dtype.is_float else values


def bits_of(dtype: DType) -> np.dtype[Any]:
    """The NumPy type of an element's bits."""
    return np.dtype(f"u{dtype.bytes}")


def operands_of(unit: Unit, facts: Facts, rng: np.random.Generator) -> dict[Flat, Array]:
    """Values for all operands of a unit by where they lie: [first dim, elements of a row], float32 or int32."""
    made: dict[Flat, Array] = {}
    for value in unit.graph.operands(unit.node.name):
        key = flat_place(unit, value, facts)
        if key not in made:
            values = _values(unit, value, facts, rng).reshape(-1, key[2])
            made[key] = round_to(values, unit.graph.type(value).dtype)
    return made


def flat_place(unit: Unit, value: Value, facts: Facts) -> Flat:
    place = unit.places[value]
    return place.tensor, place.offset, math.prod(_sizes(unit.graph.type(value), facts)[1:])


def _sizes(type_: TensorType, facts: Facts) -> tuple[int, ...]:
    return tuple(dims.evaluate(dim, facts.symbols) for dim in type_.shape)


def _values(unit: Unit, value: Value, facts: Facts, rng: np.random.Generator) -> Array:
    node, type_ = unit.graph.node(value.node), unit.graph.type(value)
    sizes, vocab = _sizes(type_, facts), unit.bundle.manifest.model.vocab_size
    lies_in = next((n for n in unit.graph.inputs if n.name == unit.places[value].tensor), None)
    role = lies_in.op.role if lies_in is not None and isinstance(lies_in.op, Input) else "computed"
    if role == "state":
        return _cache(sizes, facts, rng, filled=facts.starts if node.is_input else facts.ends)
    if role == "batch":
        assert lies_in is not None
        return facts.arrays[lies_in.name].copy()
    if role == "weight":
        assert lies_in is not None and isinstance(lies_in.op, Input)
        return _weight(lies_in.op.parts[0].name, sizes)
    if not type_.dtype.is_float:
        return rng.integers(0, vocab, sizes).astype(np.int32)
    values = rng.standard_normal(sizes, np.float32)
    return _logits(values, rng) if value.node == "logits" else values


def _cache(sizes: tuple[int, ...], facts: Facts, rng: np.random.Generator, filled: tuple[int, ...]) -> Array:
    """A KV cache [pages, 2, kv_heads, 64, dim]: the first `filled[s]` positions of sequence s, NaN elsewhere."""
    kv = np.frombuffer(bytes([POISON]) * (4 * math.prod(sizes)), np.float32).reshape(sizes).copy()
    for pages, count in zip(facts.arrays["page_table"], filled, strict=True):
        for column in range(dims.ceildiv(count, PAGE)):
            rows = min(PAGE, count - column * PAGE)
            part = kv[pages[column], :, :, :rows]
            part[:] = rng.standard_normal(part.shape, np.float32)
    return kv


@lru_cache(maxsize=64)
def _weight(name: str, sizes: tuple[int, ...]) -> Array:
    """A weight of unit gain: deviation 1/sqrt(k) for a matrix; norms lie around 1, biases around 0."""
    rng = np.random.default_rng([len(name), *sizes])
    values = rng.standard_normal(sizes, np.float32)
    if len(sizes) == 2:
        return values * np.float32(sizes[1] ** -0.5)
    return values * np.float32(0.3) if name.endswith("bias") else 1 + np.float32(0.2) * values


def _logits(values: Array, rng: np.random.Generator) -> Array:
    """Logits some of which are NaN, and whose largest value occurs twice in some rows."""
    values *= np.float32(3)
    rows, vocab = values.shape
    for row in range(0, rows, 2):
        values[row, rng.integers(0, vocab, 3)] = np.nan
    for row in range(0, rows, 3):
        values[row, rng.integers(0, vocab, 2)] = 40.0
    return values


def meaning(unit: Unit, operands: Mapping[Flat, Array], facts: Facts) -> list[Array]:
    """What the node's results should be, in the shapes of their types. The operands are not changed."""
    given = [
        operands[flat_place(unit, v, facts)].reshape(_sizes(unit.graph.type(v), facts)).copy()
        for v in unit.graph.operands(unit.node.name)
    ]
    assert isinstance(unit.node.op, Op | Fused)
    return unit.node.op.evaluate(given, unit.node.attrs, unit.node.types)


# Memory: all tensors of a unit in one image.


class Image:
    """The memory that a unit's steps see: each tensor with a guard behind it, poisoned until written."""

    def __init__(self, unit: Unit, facts: Facts) -> None:
        self.unit = unit
        self.spans: dict[str, tuple[int, int]] = {}
        self._shapes: dict[str, tuple[int, int]] = {}
        end = 0
        for name in unit.tensors:
            spec = spec_of(unit, name)
            first, *rest = [dims.evaluate(dim, facts.symbols) for dim in spec.shape]
            self._shapes[name] = (first, math.prod(rest))
            nbytes = first * math.prod(rest) * dtypes.dtype(spec.dtype).bytes
            self.spans[name] = (end, end + nbytes)
            end = dims.ceildiv(end + nbytes + GUARD, ALIGNMENT) * ALIGNMENT
        self.bytes: Array = np.full(end, POISON, np.uint8)

    def rows(self, name: str, image: Array) -> Array:
        """The bits of a tensor as [first dim, elements of a row], a view into `image`."""
        begin, end = self.spans[name]
        dtype = dtypes.dtype(spec_of(self.unit, name).dtype)
        return image[begin:end].view(bits_of(dtype)).reshape(self._shapes[name])

    def value(self, place: Flat, image: Array) -> Array:
        """The bits of a value as [first dim, elements of a row], a view into `image`."""
        tensor, column, width = place
        return self.rows(tensor, image)[:, column : column + width]

    def write(self, place: Flat, values: Array) -> None:
        """Store values [first dim, elements of a row]; NaN keeps the bytes it was poisoned with."""
        dtype = dtypes.dtype(spec_of(self.unit, place[0]).dtype)
        view = self.value(place, self.bytes)
        if dtype.is_float and np.isnan(values).any():
            written = ~np.isnan(values)
            view[written] = to_bits(values[written], dtype)
        else:
            view[:] = to_bits(values, dtype)

    def guards(self) -> Iterator[tuple[str, slice]]:
        """The bytes behind each tensor, by its name."""
        names = list(self.spans)
        starts = [self.spans[name][0] for name in names[1:]] + [len(self.bytes)]
        for name, start in zip(names, starts, strict=True):
            yield name, slice(self.spans[name][1], start)


class Bench:
    """A GPU on which units are run. `device`, `stream` and `products` are those of the runtime, or fakes."""

    def __init__(self, device: Any, stream: Any, products: Any) -> None:
        self.device = device
        self._stream = stream
        self._products = products
        self._memory: Any = None
        self._modules: dict[tuple[object, str], Any] = {}

    def run(self, unit: Unit, image: Image, facts: Facts) -> Array:
        """Launch the unit's steps on a copy of the image in GPU memory; what the memory holds afterwards."""
        if self._memory is None or self._memory.nbytes < len(image.bytes):
            if self._memory is not None:
                self._memory.free()
            self._memory = self.device.alloc(len(image.bytes), "tensors of a kernel test")
        base = self._memory.address
        self._stream.upload(base, image.bytes.ctypes.data, len(image.bytes))
        symbols = Symbols(
            max_pages=facts.symbols["max_pages"], pages=facts.symbols["pages"], sms=self.device.facts.sms
        )
        symbols.set(facts.symbols["tokens"], facts.symbols["seqs"], facts.symbols["rows"])
        addresses = {name: base + begin for name, (begin, _) in image.spans.items()}
        program = BoundProgram(self._stream, symbols, self._products)
        alone = msgspec.structs.replace(unit.variant, steps=list(unit.steps))
        program.append(alone, self._module(unit), addresses)
        program.queue()
        after = np.empty_like(image.bytes)
        self._stream.download(after.ctypes.data, base, len(after))
        self._stream.synchronize()
        return after

    def forget_modules(self) -> None:
        """Unload every cubin."""
        for module in self._modules.values():
            module.close()
        self._modules.clear()

    def close(self) -> None:
        """Give back memory and modules."""
        self.forget_modules()
        if self._memory is not None:
            self._memory.free()
            self._memory = None

    def _module(self, unit: Unit) -> Any:
        key = (unit.bundle.folder, unit.variant.cubin)
        if key not in self._modules:
            self._modules[key] = self.device.load_module(
                unit.bundle.read(unit.variant.cubin), unit.variant.cubin
            )
        return self._modules[key]


# The check.


@dataclass(frozen=True)
class Difference:
    """A way in which a unit's kernels do not do what its node means."""

    unit: Unit
    tokens: int
    what: str

    def __str__(self) -> str:
        return f"{self.unit} at {self.tokens} tokens: {self.what}"


def check_unit(bench: Bench, unit: Unit, tokens: int) -> list[Difference]:
    """Run a unit on a step of `tokens` tokens, and say how memory differs from what the node means."""
    rng = np.random.default_rng([tokens, len(unit.graph.calls), unit.graph.order.index(unit.node.name)])
    facts = ragged_step(tokens, unit.bundle.manifest.model.vocab_size, rng)
    operands = operands_of(unit, facts, rng)
    image = Image(unit, facts)
    for place, values in operands.items():
        image.write(place, values)
    expected = meaning(unit, operands, facts)
    after = bench.run(unit, image, facts)
    return [Difference(unit, tokens, what) for what in _differences(unit, facts, image, after, expected)]


def _differences(
    unit: Unit, facts: Facts, image: Image, after: Array, expected: list[Array]
) -> Iterator[str]:
    may_change = np.zeros_like(image.bytes)
    results = {unit.places[value].tensor for value in unit.results}
    for name in set(unit.tensors) - results:
        if name.startswith(f"{unit.node.name}."):  # scratch of this node
            begin, end = image.spans[name]
            may_change[begin:end] = True
    for value, reference in zip(unit.results, expected, strict=True):
        dtype, place = unit.graph.type(value).dtype, flat_place(unit, value, facts)
        found = from_bits(image.value(place, after), dtype).reshape(reference.shape)
        before = from_bits(image.value(place, image.bytes), dtype).reshape(reference.shape)
        kept = (before == reference) | ((before != before) & (reference != reference))  # NaN stays NaN
        all_bits = np.iinfo(bits_of(dtype)).max
        image.value(place, may_change)[~kept.reshape(-1, place[2])] = all_bits
        what = compare(found, reference, ~kept, dtype, unit.tolerance)
        if what is not None:
            yield f"{value}: {what}"
    changed = (after != image.bytes) & (may_change == 0)
    for name, (begin, end) in image.spans.items():
        count = int(np.count_nonzero(changed[begin:end]))
        if count:
            yield f"{count} bytes of {name} changed that should not have"
    for name, guard in image.guards():
        places = np.flatnonzero(changed[guard])
        if len(places):
            yield f"{len(places)} bytes behind {name} were written, the first {places[0]} past its end"


def compare(found: Array, reference: Array, written: Array, dtype: DType, tolerance: float) -> str | None:
    """How results differ where they should have been `written`; None when they are right.

    Integers must be equal. Of floats, the relative error of the whole and of every row (of a head, of a token)
    must be within `tolerance`, so that one wrong element among many shows too.
    """
    if not dtype.is_float:
        wrong = np.argwhere((found != reference) & written)
        if len(wrong) == 0:
            return None
        place = tuple(int(i) for i in wrong[0])
        return f"{len(wrong)} of {written.sum()} differ, the first at {place}: {found[place]}, not {reference[place]}"
    width = reference.shape[-1]
    rows = written.reshape(-1, width).any(axis=1)
    got, wanted = found.reshape(-1, width)[rows], reference.reshape(-1, width)[rows]
    numbers = np.flatnonzero(rows)
    bad = ~np.isfinite(got)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        lines = int(bad.any(axis=1).sum())
        return (
            f"{bad.sum()} elements in {lines} of {len(got)} rows are NaN or infinite,"
            f" the first in row {numbers[row]}, column {column}"
        )
    total = relative_error(got, wanted)
    each = np.linalg.norm(got.astype(np.float64) - wanted, axis=1) / np.maximum(
        np.linalg.norm(wanted.astype(np.float64), axis=1), 1e-30
    )
    if max(total, each.max()) <= tolerance:
        return None
    worst = int(each.argmax())
    column = int(np.abs(got[worst] - wanted[worst]).argmax())
    return (
        f"relative error {total:.2g}, in {int((each > tolerance).sum())} of {len(got)} rows more than {tolerance:g};"
        f" the worst is {each[worst]:.2g} in row {numbers[worst]}, where column {column} is"
        f" {got[worst, column]:.6g}, not {wanted[worst, column]:.6g}"
    )
