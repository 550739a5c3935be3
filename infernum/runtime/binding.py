"""Launches and products of the manifest bound to addresses, once, when a bundle is loaded.

Pointers never change, and a symbol is passed by the address of a shared cell, so that the argument arrays of all
launches are packed once. Each step only sets the cells, and the grids that depend on them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from infernum import dims
from infernum.errors import BundleError
from infernum.manifest import BlockVariant, Formula, Gemm, Launch, Pointer, SymbolArg
from infernum.runtime.gemm import MatrixProduct
from infernum.runtime.stream import LaunchConfig, Stream

_REMEMBERED_SIZES = 1024


class Kernels(Protocol):
    """The compiled kernels of a block by name: an `infernum.runtime.modules.Module`."""

    def kernel(self, name: str, shared_bytes: int) -> Any: ...


class ProductLibrary(Protocol):
    """A library that runs matrix products: an `infernum.runtime.gemm.CublasLt`."""

    def run(self, product: MatrixProduct, m: int) -> None: ...

    def close(self) -> None: ...


class Symbols:
    """The values of the symbols in the current step. Kernel arguments point to the 32-bit cell of each symbol."""

    def __init__(self, *, max_pages: int, pages: int, sms: int) -> None:
        self._cells = {name: ctypes.c_int32(0) for name in dims.SYMBOLS}
        self._remembered: dict[tuple[int, int, int, int], dict[Formula, int]] = {}
        self._values: dict[Formula, int] = {}
        for name, value in (("max_pages", max_pages), ("pages", pages), ("sms", sms)):
            self._cells[name].value = value
        self.set(0, 0, 0, 0)

    def set(self, tokens: int, seqs: int, rows: int, context_pages: int) -> None:
        """Set the symbols for a step of these sizes."""
        sizes = (tokens, seqs, rows, context_pages)
        for name, value in zip(("tokens", "seqs", "rows", "context_pages"), sizes, strict=True):
            self._cells[name].value = value
        if len(self._remembered) >= _REMEMBERED_SIZES:
            self._remembered.clear()
        self._values = self._remembered.setdefault(sizes, {})

    def values(self) -> dict[str, int]:
        """All symbols of the current step."""
        return {name: cell.value for name, cell in self._cells.items()}

    def value(self, formula: Formula) -> int:
        """The value of a formula in the current step; values are cached by the sizes of the step."""
        if isinstance(formula, int):
            return formula
        result = self._values.get(formula)
        if result is None:
            result = self._values[formula] = dims.evaluate(formula, self.values())
        return result

    def address(self, symbol: str) -> int:
        """The address of a symbol's cell. Raises BundleError when there is no such symbol."""
        if symbol not in self._cells:
            raise BundleError(f"unknown symbol {symbol!r}; this runtime knows {', '.join(dims.SYMBOLS)}")
        return ctypes.addressof(self._cells[symbol])


@dataclass(frozen=True)
class BoundLaunch:
    """A kernel launch. `params` is the address of its argument array, and `arguments` owns that memory."""

    config: LaunchConfig
    kernel: Any
    params: int
    arguments: tuple[Any, ...] = field(repr=False)


@dataclass(frozen=True)
class BoundProduct:
    """A matrix product of `m` rows."""

    product: MatrixProduct
    m: Formula


@dataclass(frozen=True)
class StepPlace:
    """Place of a launch or product in the program: its block, the layer of that block, and its index in the block."""

    block: str
    layer: int | None
    index: int


class BoundProgram:
    """Launches and products in order, ready to be queued on one stream. `places` has the place of each."""

    def __init__(
        self,
        stream: Stream,
        symbols: Symbols,
        products: ProductLibrary | None,
        *,
        starts_early: bool = True,
    ) -> None:
        """`starts_early`: kernels that allow it may start before the one before them has ended."""
        self._stream = stream
        self._symbols = symbols
        self._products = products
        self._starts_early = starts_early
        self.places: list[StepPlace] = []
        self._blocks: list[range] = []
        self._steps: list[BoundLaunch | BoundProduct] = []
        self._configs: dict[tuple[object, ...], LaunchConfig] = {}
        self._grids: list[tuple[LaunchConfig, tuple[Formula, ...]]] = []

    def append(
        self,
        variant: BlockVariant,
        kernels: Kernels | None,
        addresses: Mapping[str, int],
        layer: int | None = None,
    ) -> None:
        """Bind and append the steps of a block. `addresses` has the address of every tensor that the steps name."""
        self._blocks.append(range(len(self._steps), len(self._steps) + len(variant.steps)))
        self.places += [StepPlace(variant.block, layer, index) for index in range(len(variant.steps))]
        where = f"{variant.block}.{variant.variant}"
        for step in variant.steps:
            match step:
                case Launch():
                    assert kernels is not None, f"{where} launches kernels but has no module"
                    kernel = kernels.kernel(step.kernel, step.shared_bytes)
                    params, arguments = pack_arguments(step, addresses, self._symbols, where)
                    self._steps.append(BoundLaunch(self._config(step), kernel, params, arguments))
                case Gemm():
                    product = bind_product(step, addresses, _bias_dtype(step, variant), where)
                    self._steps.append(BoundProduct(product, step.m))

    def queue(self, only: Sequence[int] | None = None) -> None:
        """Queue every step for the current values of the symbols. Launches with an empty grid are skipped.

        With `only`, queue just the steps of these numbers, in that order.
        """
        self._set_grids()
        self._queue(self._steps if only is None else [self._steps[number] for number in only])

    def queue_by_block(self) -> Iterator[None]:
        """Queue every step, and pause behind each block."""
        self._set_grids()
        for block in self._blocks:
            self._queue(self._steps[block.start : block.stop])
            yield

    def _queue(self, steps: Sequence[BoundLaunch | BoundProduct]) -> None:
        value, launch = self._symbols.value, self._stream.launch
        for step in steps:
            if isinstance(step, BoundLaunch):
                if not step.config.empty:
                    launch(step.config, step.kernel, step.params)
            elif (m := value(step.m)) > 0:
                assert self._products is not None, "a program with matrix products needs a library"
                self._products.run(step.product, m)

    def queue_last_block(self) -> None:
        """Queue the steps of the block that was appended last, for the current values of the symbols."""
        self.queue(self._blocks[-1])

    def queued(self) -> list[int]:
        """The numbers of the steps that `queue` does not skip for the current values of the symbols."""
        self._set_grids()
        return [
            number
            for number, step in enumerate(self._steps)
            if (not step.config.empty if isinstance(step, BoundLaunch) else self._symbols.value(step.m) > 0)
        ]

    def _set_grids(self) -> None:
        value = self._symbols.value
        for config, formulas in self._grids:
            config.set_grid(*map(value, formulas))

    def _config(self, launch: Launch) -> LaunchConfig:
        """The launch configuration of a launch. Launches of equal geometry share one."""
        key = (*launch.grid, "by", *launch.block, launch.shared_bytes, launch.cluster, launch.programmatic)
        config = self._configs.get(key)
        if config is None:
            block = (*launch.block, 1, 1)[:3]
            config = self._stream.launch_config(
                (block[0], block[1], block[2]),
                launch.shared_bytes,
                launch.programmatic and self._starts_early,
                launch.cluster != 1,
            )
            self._configs[key] = config
            grid = (*launch.grid, 1, 1)[:3]
            self._grids.append((config, (*grid, launch.cluster)))
        return config


def resolve(pointer: Pointer, addresses: Mapping[str, int], where: str) -> int:
    """The address that a pointer stands for. Raises BundleError when its block has no tensor of that name."""
    base = addresses.get(pointer.tensor)
    if base is None:
        raise BundleError(
            f"{where}: no tensor {pointer.tensor!r} among {sorted(addresses)}; compile the model again"
        )
    return base + pointer.offset


def pack_arguments(
    launch: Launch, addresses: Mapping[str, int], symbols: Symbols, where: str
) -> tuple[int, tuple[Any, ...]]:
    """The address of a launch's argument array (pointers to values, as in CUDA), and the objects that own it."""
    pointers = [
        resolve(arg, addresses, f"{where}: {launch.kernel}")
        for arg in launch.args
        if isinstance(arg, Pointer)
    ]
    values = (ctypes.c_uint64 * max(len(pointers), 1))(*pointers)
    next_value = ctypes.addressof(values)
    cells: list[int] = []
    for arg in launch.args:
        match arg:
            case Pointer():
                cells.append(next_value)
                next_value += ctypes.sizeof(ctypes.c_uint64)
            case SymbolArg():
                cells.append(symbols.address(arg.symbol))
    array = (ctypes.c_void_p * max(len(cells), 1))(*cells)
    return ctypes.addressof(array), (array, values, symbols)


def bind_product(gemm: Gemm, addresses: Mapping[str, int], bias_dtype: str, where: str) -> MatrixProduct:
    """A product of the manifest with the addresses of its operands."""
    place = f"{where}: {gemm.name}"
    return MatrixProduct(
        name=place,
        x=resolve(gemm.x, addresses, place),
        weight=resolve(gemm.weight, addresses, place),
        out=resolve(gemm.out, addresses, place),
        n=gemm.n,
        k=gemm.k,
        x_stride=gemm.x_stride,
        out_stride=gemm.out_stride,
        dtype=gemm.dtype,
        out_dtype=gemm.out_dtype,
        bias=resolve(gemm.bias, addresses, place) if gemm.bias else 0,
        bias_dtype=bias_dtype,
        residual=resolve(gemm.residual, addresses, place) if gemm.residual else 0,
        residual_stride=gemm.residual_stride,
    )


def _bias_dtype(gemm: Gemm, variant: BlockVariant) -> str:
    if gemm.bias is None:
        return ""
    weight = variant.weights.get(gemm.bias.tensor)
    return weight.spec.dtype if weight else gemm.out_dtype
