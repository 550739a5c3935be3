"""The DSL: a block is a Python function over tensors; running it once builds its graph.

    @block(x="tokens hidden_size")
    def decoder(x, *, batch, w, cfg): ...

Dims are symbols (`tokens`) or fields of the model's configuration. `batch` holds the facts of the step, `w` names
weights by their checkpoint names. Shape and dtype errors name the line of the block that made them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from infernum.dims import SYMBOLS, evaluate
from infernum.dtypes import F32, I32, DType
from infernum.errors import CompileError, ShapeError
from infernum.ir.graph import Graph, Input, TensorType
from infernum.ir.hazards import check_in_place
from infernum.ir.op import as_tuple
from infernum.ir.settings import is_plain, suffix
from infernum.ir.trace import Tensor, Trace, caller, shown_path
from infernum.recipes import Read, Recipe, Rows, Share, prefixed, shape_of, spelled
from infernum.step import INPUTS, TABLES

PAGE = 64
"""Positions in one page of the KV cache."""

BATCH: dict[str, TensorType] = {
    item.name: TensorType(item.dims, item.dtype) for item in INPUTS if item not in TABLES
}
"""The inputs of a step whose shapes are the same for all models; a block reads the others by `BatchInputs.tables`."""


Shard = Literal["rows", "columns"]
"""The axis along which a weight is divided among ranks: its rows, or its columns."""

RESERVED = frozenset((*(item.name for item in INPUTS), *SYMBOLS, "kv", "out", "exchange"))
"""Names that no weight may have: inputs of the step and parameters of kernels."""


@dataclass(frozen=True)
class Weights:
    """Names the weights of a block. `prefix` may hold `{layer}`, and goes before the names of all tensors.

    `beginnings` maps the beginning of a tensor's name to beginnings that some checkpoints have instead.
    A weight is held in `dtype` unless it is given one of its own. Values are cast when they are loaded; integers are
    not, and must be stored in that very type.
    """

    trace: Trace
    dtype: DType
    prefix: str = ""
    beginnings: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])

    @property
    def ranks(self) -> int:
        """Number of GPUs that the model is divided among."""
        return self.trace.ranks

    def tensor(
        self,
        name: str,
        *shape: int,
        alternatives: Sequence[str] = (),
        dtype: DType | None = None,
        shard: Shard | None = None,
        heads: int = 0,
    ) -> Tensor:
        """The checkpoint tensor of that name and shape, or else the first of `alternatives` that is there.

        shard  the axis that is divided among the ranks; None: every rank has the whole tensor
        heads  the axis is that many heads, which are not cut (`Share`)
        """
        read = Read((name, *alternatives), shape, _stored(dtype))
        return self.weight(name, self._share(read, shard, heads), dtype)

    def rows(
        self,
        called: str,
        name: str,
        *shape: int,
        start: int,
        stop: int,
        dtype: DType | None = None,
        shard: Shard | None = None,
        heads: int = 0,
    ) -> Tensor:
        """Rows start … stop − 1 of the fused checkpoint tensor `name`, of that shape; `called` names them in the graph.

        q = w.rows("q_proj", "qkv_proj.weight", q + 2 * kv, cfg.hidden_size, start=0, stop=q)

        `shard` and `heads` are of these rows, as in `tensor`.
        """
        rows = Rows(Read((name,), shape, _stored(dtype)), start, stop)
        return self.weight(called, self._share(rows, shard, heads), dtype)

    def _share(self, recipe: Recipe, shard: Shard | None, heads: int) -> Recipe:
        if shard is None or self.ranks == 1:
            return recipe
        return Share(recipe, {"rows": 0, "columns": 1}[shard], heads)

    def weight(self, called: str, recipe: Recipe, dtype: DType | None = None) -> Tensor:
        """The weight that a recipe describes; `called` names it in the graph.

        Raises ShapeError with the DSL line in front for a recipe that makes no sense.
        """
        try:
            type_ = TensorType(shape_of(recipe, self.ranks), dtype or self.dtype)
        except ShapeError as error:
            raise ShapeError(f"{caller()}: {error}") from error
        recipe = spelled(prefixed(recipe, self.prefix), self.beginnings)
        return self.trace.input(self._called(called, recipe), Input("weight", recipe), type_)

    def _called(self, name: str, recipe: Recipe) -> str:
        """What the graph calls a weight: its name, with as much of the prefix as tells it from everything else."""
        before = [part for part in self.prefix.split(".") if part.isidentifier()]
        called = name.removesuffix(".weight").replace(".", "_")
        while not self._is_free(called, recipe):
            called = f"{before.pop() if before else 'w'}_{called}"
        return called

    def _is_free(self, called: str, recipe: Recipe) -> bool:
        if not called.isidentifier() or called in RESERVED:
            return False
        if called not in self.trace.entries:
            return True
        match self.trace.entries[called][0].op, recipe:
            case Input(
                "weight", Read(names=names)
            ), Read():  # of two shapes, which is a mistake and not two weights
                return names == recipe.names
            case Input("weight", other), _:
                return other == recipe
            case _:
                return False

    def under(self, prefix: str) -> Weights:
        """The same weights with a longer prefix."""
        return replace(self, prefix=self.prefix + prefix)


@dataclass(frozen=True)
class BatchInputs:
    """The inputs of the step. Each becomes an input of the block when the block first reads it."""

    trace: Trace
    dtype: DType

    def __getattr__(self, name: str) -> Tensor:
        type_ = BATCH.get(name)
        if type_ is None:
            raise ShapeError(f"{caller()}: a step has no {name!r}; it has {', '.join(BATCH)}")
        return self.trace.input(name, Input("batch"), type_)

    def kv(self, num_kv_heads: int, head_dim: int) -> Tensor:
        """This layer's KV cache, [pages, 2, num_kv_heads, PAGE, head_dim]: keys, then values."""
        return self.trace.input(
            "kv", Input("state"), TensorType(("pages", 2, num_kv_heads, PAGE, head_dim), self.dtype)
        )

    def tables(self, vocab_size: int) -> dict[str, Tensor]:
        """The tables of a model with that vocabulary, by name (`infernum.step.TABLES`)."""
        read: dict[str, Tensor] = {}
        for table in TABLES:
            rows, columns = table.dims
            type_ = TensorType((rows, evaluate(columns, {"vocab": vocab_size})), table.dtype)
            read[table.name] = self.trace.input(table.name, Input("batch"), type_)
        return read


@dataclass(frozen=True)
class Block:
    """A part of a model that is compiled once and applied for any number of layers.

    `settings` are keyword arguments of the function, bound by `of`. Two blocks are equal if they have the same
    function, streams, prefix and settings.
    """

    name: str
    function: Callable[..., Any]
    streams: Mapping[str, str]
    prefix: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def of(self, **settings: Any) -> Block:
        """This block with `settings` bound, under a name that shows them.

        `decoder.of(kind="sliding")` is called `decoder_sliding`, and `decoder.of(window=4096)` `decoder_window_4096`.
        The function receives settings as keyword arguments, beside batch, w and cfg. A setting is a string, a number,
        true, false, None, a tuple of these or a frozen dataclass. Raises CompileError for another value, and for a
        setting that the function does not have.
        """
        parameters = self._parameters()
        for name, value in settings.items():
            if name not in parameters:
                raise CompileError(
                    f"{caller()}: the block {self.name} ({self.where}) has no setting {name!r};"
                    f" its settings are: {', '.join(parameters) or 'none'}"
                )
            if not is_plain(value):
                raise CompileError(
                    f"{caller()}: {self.name}.of({name}=…) with {value!r}: give a string, a number, true, false, None,"
                    " a tuple of these or a frozen dataclass"
                )
        chosen = {**self.settings, **settings}
        bound = {name: chosen[name] for name in parameters if name in chosen}
        name = self.name.removesuffix(suffix(self.settings)) + suffix(bound)
        return replace(self, name=name, settings=bound)

    @property
    def where(self) -> str:
        """`file:line` of the block's definition."""
        code = self.function.__code__
        return f"{shown_path(code.co_filename)}:{code.co_firstlineno}"

    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of the function that are settings, in the order of its signature."""
        passed = {*self.streams, "batch", "w", "cfg"}
        parameters = inspect.signature(self.function).parameters
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return {name: p for name, p in parameters.items() if name not in passed and p.kind in named}

    def _check_bound(self) -> None:
        """Raise CompileError for a setting that has no default and that `of` has not bound."""
        for name, parameter in self._parameters().items():
            if parameter.default is parameter.empty and name not in self.settings:
                raise CompileError(
                    f"{self.where}: the block {self.name} needs a setting {name}; give it by {self.name}.of({name}=…)"
                )

    def __call__(self, *streams: Any, batch: BatchInputs, w: Weights, cfg: Any) -> Any:
        """What the block computes, as part of the block that is being traced, whose `batch` and `w` it is given.

        The prefix of weights is that of the block being traced. Raises ShapeError for another number of streams.
        """
        if len(streams) != len(self.streams):
            names = ", ".join(self.streams) or "no streams"
            raise ShapeError(f"{caller()}: the block {self.name} takes {names}; {len(streams)} were given")
        by_name = dict(zip(self.streams, streams, strict=True))
        self._check_bound()
        return self.function(**by_name, batch=batch, w=w, cfg=cfg, **self.settings)

    def trace(self, cfg: Any, dtype: DType, ranks: int = 1) -> Graph:
        """Run the function once and return the graph that each of `ranks` GPUs runs.

        Raises ShapeError, DTypeError or CompileError at the DSL line.
        """
        self._check_bound()
        trace = Trace(ranks=ranks)
        streams = {
            n: trace.input(n, Input("stream"), _stream_type(text, cfg, dtype))
            for n, text in self.streams.items()
        }
        weights = Weights(trace, dtype, self.prefix, getattr(cfg, "tensor_beginnings", {}))
        returned = self.function(
            **streams, batch=BatchInputs(trace, dtype), w=weights, cfg=cfg, **self.settings
        )
        outputs: tuple[Tensor, ...] = as_tuple(returned)
        graph = Graph.build(self.name, trace.entries.values(), [t.value for t in outputs])
        check_in_place(graph)
        return graph.live()


def block(*, prefix: str = "", **streams: str) -> Callable[[Callable[..., Any]], Block]:
    """Declare a block. Each stream is `name="dims"`, or `name="dtype dims"`; `prefix` begins its weights' names."""

    def declare(function: Callable[..., Any]) -> Block:
        return Block(function.__name__, function, streams, prefix)

    return declare


def _stream_type(text: str, cfg: Any, dtype: DType) -> TensorType:
    words = text.split()
    fixed = {"f32": F32, "i32": I32}.get(words[0])
    dims = words[1:] if fixed else words
    return TensorType(
        tuple(d if d in SYMBOLS else int(d) if d.isdigit() else getattr(cfg, d) for d in dims), fixed or dtype
    )


def _stored(dtype: DType | None) -> str | None:
    """The type that a tensor must be stored in for a buffer of `dtype`."""
    return dtype.name if dtype and not dtype.is_float else None
