"""Every op says what it is, gives the types it declares, and refuses wrong arguments at the user's line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from infernum import ops
from infernum.codegen.weights import fold_weights
from infernum.dtypes import BF16, F16, F32, I32, DType, relative_error
from infernum.errors import CompileError, DTypeError, InfernumError, ShapeError
from infernum.ir.block import BatchInputs, Tensor, Weights, block
from infernum.ir.graph import Graph, Input, TensorType
from infernum.ir.interpret import interpret
from infernum.ir.kernel import Library, LoadTime, Pointwise, Template, View
from infernum.ir.op import OPS, Op, op, pointwise
from infernum.ir.text import parse_graph, print_graph
from infernum.ir.trace import Trace
from infernum.recipes import Packed, Read, Rows, Stack, read, tensor_names
from infernum.resources import templates_folder
from infernum.rope import Rope

ROWS = TensorType(("tokens", 64), BF16)
HEADS = TensorType(("tokens", 4, 16), BF16)
KEYS = TensorType(("tokens", 2, 16), BF16)
CACHE = TensorType(("pages", 2, 2, 64, 16), BF16)
VECTOR = TensorType((64,), BF16)
MATRIX = TensorType((96, 64), BF16)
LONG = Rope("longrope", short_factor=(1.0,) * 8, long_factor=(2.0,) * 8, original_max_position=64)
TOKENS, PER_ROW, TABLE = (TensorType(s, I32) for s in (("tokens",), ("rows",), ("seqs", "max_pages")))
STARTS = TensorType(("seqs + 1",), I32)
FACTOR = TensorType(("rows",), F32)
LOGITS = TensorType(("rows", 131), F32)
COUNTS, BIAS, ALLOWED = (
    TensorType(("min(table_rows, 256)", 131), I32),
    TensorType(("min(table_rows, 64)", 131), F32),
    TensorType(("table_rows", 5), I32),
)

Example = tuple[tuple[TensorType, ...], dict[str, Any], tuple[TensorType, ...]]
EXAMPLES: dict[str, Example] = {
    "add": ((ROWS, VECTOR), {}, (ROWS,)),
    "advance": ((PER_ROW, TOKENS, TOKENS), {}, (TOKENS, TOKENS)),
    "append": ((CACHE, KEYS, KEYS, TOKENS, TOKENS, TABLE), {}, (CACHE,)),
    "argmax": ((LOGITS,), {}, (PER_ROW,)),
    "attention": ((HEADS, CACHE, TOKENS, TOKENS, STARTS, TABLE), {"scale": 0.25}, (HEADS,)),
    "cast": ((ROWS,), {"to": "float32"}, (TensorType(("tokens", 64), F32),)),
    "clip": ((ROWS,), {"low": -2.0, "high": 2.0}, (ROWS,)),
    "count_tokens": ((COUNTS, PER_ROW, PER_ROW), {}, (COUNTS,)),
    "columns": ((ROWS,), {"start": 8, "stop": 40}, (TensorType(("tokens", 32), BF16),)),
    "embedding": ((TOKENS, MATRIX), {}, (ROWS,)),
    "flatten": ((HEADS,), {}, (ROWS,)),
    "gelu": ((ROWS,), {}, (ROWS,)),
    "gelu_tanh": ((ROWS,), {}, (ROWS,)),
    "hardswish": ((ROWS,), {}, (ROWS,)),
    "heads": ((ROWS,), {"dim": 16}, (HEADS,)),
    "laplace": ((ROWS,), {}, (ROWS,)),
    "linear": ((ROWS, MATRIX), {"out": "f32"}, (TensorType(("tokens", 96), F32),)),
    "logprobs": (
        (LOGITS, PER_ROW, PER_ROW),
        {},
        (TensorType(("rows", 21), I32), TensorType(("rows", 21), F32)),
    ),
    "mul": ((VECTOR, ROWS), {}, (ROWS,)),
    "relu": ((ROWS,), {}, (ROWS,)),
    "rms_norm": ((ROWS, VECTOR), {"eps": 1e-5}, (ROWS,)),
    "rope": ((HEADS, TOKENS), {"rope": Rope()}, (HEADS,)),
    "rope_by_length": ((HEADS, TOKENS, TOKENS), {"rope": LONG}, (HEADS,)),
    "sample": (
        (
            *(LOGITS, COUNTS, BIAS, ALLOWED, PER_ROW, PER_ROW, PER_ROW),
            *(FACTOR, PER_ROW, FACTOR, FACTOR, FACTOR, FACTOR, FACTOR, PER_ROW, TOKENS, PER_ROW),
        ),
        {},
        (PER_ROW,),
    ),
    "scale": ((ROWS,), {"by": 0.22}, (ROWS,)),
    "select_rows": ((ROWS, PER_ROW), {}, (TensorType(("rows", 64), BF16),)),
    "sigmoid": ((ROWS,), {}, (ROWS,)),
    "silu": ((ROWS,), {}, (ROWS,)),
    "softcap": ((ROWS,), {"cap": 2.0}, (ROWS,)),
    "softplus": ((ROWS,), {}, (ROWS,)),
    "sqrt_softplus": ((ROWS,), {}, (ROWS,)),
    "sum_ranks": ((TensorType(("tokens", 64), F32),), {"ranks": 2, "out": "bf16"}, (ROWS,)),
    "gather_ranks": ((TensorType(("rows", 64), F32),), {"ranks": 2}, (TensorType(("rows", 128), F32),)),
    "stack_rows": ((MATRIX, TensorType((32, 64), BF16)), {}, (TensorType((128, 64), BF16),)),
    "tanh": ((ROWS,), {}, (ROWS,)),
}
"""Operand types, attributes and result types of one call of each op."""

SIZES = {"tokens": 3, "rows": 3, "pages": 2, "seqs": 1, "max_pages": 1, "seqs + 1": 2}
SIZES |= {"table_rows": 4, "min(table_rows, 256)": 4, "min(table_rows, 64)": 4}
REGISTERED = {
    name: found for name, found in OPS.items() if found.meaning.__module__.startswith("infernum.ops.")
}


# ---- the registry


@pytest.mark.parametrize("name", REGISTERED)
def test_each_op_is_exported_under_its_name_and_documented(name: str) -> None:
    found = OPS[name]
    assert found.name == name == found.meaning.__name__
    assert 10 < len(found.doc) < 120
    assert getattr(ops, name) is found


@pytest.mark.parametrize("name", REGISTERED)
def test_each_op_infers_the_types_that_its_meaning_gives(name: str) -> None:
    assert name in EXAMPLES, f"give an example call of {name}"
    found = OPS[name]
    operands, attrs, results = EXAMPLES[name]
    assert found.infer_types(*operands, **attrs) == results
    given = [array_of(t, param) for t, param in zip(operands, names_of(found, len(operands)), strict=True)]
    arrays = found.evaluate(given, attrs, results)
    assert [a.shape for a in arrays] == [tuple(sized(d) for d in t.shape) for t in results]
    assert all(
        a.dtype == (np.float32 if t.dtype.is_float else np.int32)
        for a, t in zip(arrays, results, strict=True)
    )


@pytest.mark.parametrize("name", REGISTERED)
def test_each_op_asks_to_be_emitted_by_something_that_exists(name: str) -> None:
    found = OPS[name]
    if isinstance(found.lowering, Pointwise):
        arguments = dict.fromkeys(found.params, "x") | dict.fromkeys(found.attrs, "1.0f")
        assert found.lowering.expr.format(**arguments)
        return
    if isinstance(found.lowering, (View, LoadTime)):
        return
    assert found.lowering, f"{name} has no kernel"
    for kernel in found.lowering:
        spec: Template | Library | None = kernel
        while isinstance(spec, Template):
            assert (templates_folder() / f"{spec.name}.cu.j2").is_file()
            assert all((templates_folder() / "include" / include).is_file() for include in spec.includes)
            spec = spec.next_kernel


@pytest.mark.parametrize("name", [n for n, found in REGISTERED.items() if found.in_place])
def test_a_result_in_place_has_the_type_of_its_operand_and_is_its_memory(name: str) -> None:
    operands, attrs, results = EXAMPLES[name]
    given = [array_of(t, param) for t, param in zip(operands, OPS[name].params, strict=True)]
    before = [a.copy() for a in given]
    OPS[name].evaluate(given, attrs, results)
    for result, slot in OPS[name].in_place.items():
        assert results[result] == operands[slot]
        assert not np.array_equal(given[slot], before[slot])


@pytest.mark.parametrize("name", [n for n, found in REGISTERED.items() if found.batched])
def test_a_batched_function_computes_what_its_op_means(name: str) -> None:
    operands, attrs, results = EXAMPLES[name]
    given = [array_of(t, param) for t, param in zip(operands, OPS[name].params, strict=True)]
    batched = OPS[name].evaluate(given, attrs, results, batched=True)
    for out, meant in zip(batched, OPS[name].evaluate(given, attrs, results), strict=True):
        assert out.shape == meant.shape and relative_error(out, meant) <= 1e-6


@pytest.mark.parametrize("name", [n for n, found in REGISTERED.items() if found.commutative])
def test_a_commutative_op_gives_the_same_either_way_round(name: str) -> None:
    x, y = (np.random.default_rng(s).standard_normal((3, 64)).astype(np.float32) for s in (1, 2))
    assert np.array_equal(OPS[name].meaning(x, y), OPS[name].meaning(y, x))


@pytest.mark.parametrize("name", [n for n, found in REGISTERED.items() if found.signature])
def test_a_signature_has_a_term_for_each_operand_and_result(name: str) -> None:
    signature = OPS[name].signature
    assert signature is not None
    assert len(signature.operands) == len(OPS[name].params)
    assert len(signature.results) == len(OPS[name].results)


def names_of(found: Op, count: int) -> list[str]:
    return [found.params[0]] * count if found.variadic else list(found.params)


def sized(dim: int | str) -> int:
    return dim if isinstance(dim, int) else SIZES[dim]


def array_of(kind: TensorType, param: str) -> np.ndarray:
    """An operand: random numbers, or facts of a step with one sequence of three tokens."""
    shape = tuple(sized(d) for d in kind.shape)
    if kind.dtype.is_float:
        return np.abs(np.random.default_rng(len(param)).standard_normal(shape)).astype(np.float32) + 0.5
    facts = {"query_start": [0, 3], "page_table": [[1]], "positions": [4, 5, 6], "rows": [2, 0, 1]}
    facts |= {"output_rows": [0, 1, 2], "token_ids": [7, 8, 9], "next_tokens": [3, 4, 5]}
    return np.array(facts[param], np.int32) if param in facts else np.zeros(shape, np.int32)


# ---- mistakes in a block, named by their line

CFG = SimpleNamespace(hidden_size=64, vocab_size=131)


def line_of(function: Callable[..., Any], text: str) -> int:
    """The number, in this file, of the line of a function that holds `text`."""
    lines, first = inspect.getsourcelines(function)
    (found,) = [i for i, line in enumerate(lines) if text in line]
    return first + found


@block(x="tokens hidden_size")
def wrong_width(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    h = ops.silu(x)
    return ops.linear(h, w.tensor("proj.weight", 96, 32))  # here


@block(x="tokens hidden_size")
def wrong_norm(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return ops.rms_norm(x, w.tensor("norm.weight", 32), eps=1e-5)  # here


@block(x="tokens hidden_size", y="f32 tokens hidden_size")
def wrong_dtype(x: Tensor, y: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return ops.add(x, y)  # here


@block(x="tokens hidden_size")
def wrong_bias(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return ops.add(x, w.tensor("bias", 32))  # here


@block(x="tokens hidden_size")
def wrong_heads(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return ops.heads(x, dim=24)  # here


@block(x="tokens hidden_size")
def wrong_columns(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return ops.columns(x, start=32, stop=96)  # here


@block(x="tokens hidden_size")
def odd_heads(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    h = ops.columns(x, start=0, stop=63)
    return ops.rope(ops.heads(h, dim=21), batch.positions, rope=Rope())  # here


@block(x="tokens hidden_size")
def integer_ids(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return ops.embedding(x, w.tensor("embed.weight", 131, 64))  # here


@block(x="tokens hidden_size")
def in_a_function_below(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return below(x, w)


def below(x: Tensor, w: Weights) -> Tensor:
    narrow = ops.dense(x, w, "proj", 32)
    return ops.add(x, narrow)  # here


@block(x="tokens hidden_size")
def too_few_operands(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return ops.add(x)  # here


@block(x="tokens hidden_size")
def too_many_operands(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return ops.silu(x, x)  # here


@block(x="tokens hidden_size")
def too_many_streams(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return no_tensor(x, x, batch=batch, w=w, cfg=cfg)  # here


@block(x="tokens hidden_size")
def no_tensor(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return ops.mul(x, 2.0)  # here # pyright: ignore[reportArgumentType]


@block(x="tokens hidden_size")
def unknown_attribute(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return ops.rms_norm(x, w.tensor("norm.weight", 64), epsilon=1e-5)  # here


@block(x="tokens hidden_size")
def missing_attribute(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return ops.rms_norm(x, w.tensor("norm.weight", 64))  # here


@block(x="tokens hidden_size")
def unknown_fact(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return ops.rope(ops.heads(x, dim=16), batch.position, rope=Rope())  # here


@block(x="tokens hidden_size")
def one_weight_of_two_shapes(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    h = ops.add(x, w.tensor("bias", 64))
    return ops.linear(h, w.tensor("bias", 64, 64))  # here


MISTAKES: list[tuple[Any, type[InfernumError], str]] = [
    (
        wrong_width,
        ShapeError,
        "linear: x is bf16[tokens, 64] and weight bf16[96, 32]; the last dims must agree",
    ),
    (wrong_norm, ShapeError, "norm: weight is bf16[32], but width is 64"),
    (wrong_dtype, DTypeError, "add: y is f32[tokens, 64], the other operand bf16[tokens, 64]; use cast"),
    (wrong_bias, ShapeError, "add: y is bf16[32], which neither equals bf16[tokens, 64] nor is its last dim"),
    (wrong_heads, ShapeError, "heads: x is bf16[tokens, 64], whose rows do not divide into heads of 24"),
    (wrong_columns, ShapeError, "columns: x is bf16[tokens, 64], which has no columns 32 to 96"),
    (
        odd_heads,
        ShapeError,
        "rope: x is bf16[tokens, 3, 21]; it turns pairs of elements, so the last dim must be even",
    ),
    (integer_ids, ShapeError, "embedding: token_ids is bf16[tokens, 64], expected [tokens]"),
    (too_few_operands, ShapeError, "add takes x, y; 1 operands were given"),
    (too_many_operands, ShapeError, "silu takes x; 2 operands were given"),
    (too_many_streams, ShapeError, "the block no_tensor takes x; 2 were given"),
    (no_tensor, ShapeError, "mul takes tensors of a block, not float"),
    (unknown_attribute, ShapeError, "rms_norm has no attribute epsilon; it has eps, offset"),
    (missing_attribute, ShapeError, "rms_norm needs the attribute eps"),
    (
        one_weight_of_two_shapes,
        ShapeError,
        "%bias is a weight bf16[64] already, and cannot be a weight bf16[64, 64] too",
    ),
]


@pytest.mark.parametrize(("wrong", "kind", "message"), MISTAKES, ids=[m[0].name for m in MISTAKES])
def test_a_mistake_in_a_block_is_named_with_its_file_and_line(
    wrong: Any, kind: type[InfernumError], message: str
) -> None:
    with pytest.raises(kind) as error:
        wrong.trace(CFG, BF16)
    assert str(error.value) == f"{Path(__file__).name}:{line_of(wrong.function, '# here')}: {message}"


@block(x="tokens hidden_size", prefix="inner.")
def scaled(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return ops.mul(ops.select_rows(x, batch.output_rows), w.tensor("scale", cfg.hidden_size))


@block(x="tokens hidden_size", prefix="outer.")
def around(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return ops.silu(scaled(x, batch=batch, w=w, cfg=cfg))


def test_a_block_may_be_a_part_of_another_which_names_its_weights() -> None:
    graph = around.trace(CFG, BF16)
    assert graph.name == "around"
    assert [node.op.name for node in graph.calls] == ["select_rows", "mul", "silu"]
    (scale,) = [n.op for n in graph.inputs if isinstance(n.op, Input) and n.op.role == "weight"]
    assert scale.recipe == read("outer.scale", CFG.hidden_size)


def test_a_fact_that_a_step_does_not_have_is_named_with_what_it_has() -> None:
    with pytest.raises(ShapeError) as error:
        unknown_fact.trace(CFG, BF16)
    line = line_of(unknown_fact.function, "# here")
    assert str(error.value).startswith(
        f"test_ops.py:{line}: a step has no 'position'; it has token_ids, positions"
    )


def test_a_mistake_in_a_function_that_a_block_calls_is_named_with_its_own_line() -> None:
    with pytest.raises(ShapeError) as error:
        in_a_function_below.trace(CFG, BF16)
    assert str(error.value).startswith(f"test_ops.py:{line_of(below, '# here')}: add: y is bf16[tokens, 32]")


# ---- in place

KV_CFG = SimpleNamespace(hidden_size=32)
FACTS = ("positions", "sequence", "page_table")


def stored(x: Tensor, batch: BatchInputs) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of x as heads, the cache before they are stored in it, and the cache after."""
    k, kv = ops.heads(x, dim=16), batch.kv(2, 16)
    return k, kv, ops.append(kv, k, k, batch.positions, batch.sequence, batch.page_table)


def attend(q: Tensor, kv: Tensor, batch: BatchInputs) -> Tensor:
    return ops.flatten(
        ops.attention(q, kv, batch.positions, batch.sequence, batch.query_start, batch.page_table, scale=1.0)
    )


@block(x="tokens hidden_size")
def reads_what_was_overwritten(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Any:
    q, before, after = stored(x, batch)
    return ops.add(attend(q, before, batch), attend(q, after, batch))


@block(x="tokens hidden_size")
def returns_what_was_overwritten(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Any:
    q, before, after = stored(x, batch)
    return attend(q, after, batch), before


@block(x="tokens hidden_size")
def stores_without_using(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Any:
    stored(x, batch)
    return ops.silu(x)


@block(x="tokens hidden_size")
def stores_twice_in_one_cache(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Any:
    return stored(x, batch)[2], stored(ops.silu(x), batch)[2]


@block(x="tokens hidden_size")
def reads_before_it_overwrites(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Any:
    k, kv = ops.heads(x, dim=16), batch.kv(2, 16)
    k = ops.heads(ops.add(attend(k, kv, batch), x), dim=16)
    return ops.append(kv, k, k, batch.positions, batch.sequence, batch.page_table)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            reads_what_was_overwritten,
            "append changes %kv in place, but attention_1 may read it later; use the result of append there",
        ),
        (
            returns_what_was_overwritten,
            "append changes %kv in place, but what comes after the block may read it later; "
            "use the result of append there",
        ),
        (stores_without_using, "append changes %kv in place, but nothing uses its result: return it"),
        (
            stores_twice_in_one_cache,
            "append changes %kv in place, but append_2 may read it later; use the result of append there",
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_reading_a_value_after_it_was_overwritten_is_an_error_at_the_line(wrong: Any, message: str) -> None:
    with pytest.raises(CompileError) as error:
        wrong.trace(KV_CFG, BF16)
    assert str(error.value) == f"test_ops.py:{line_of(stored, 'return k, kv')}: {message}"


def test_reading_a_value_that_the_overwriting_op_depends_on_is_fine() -> None:
    assert len(reads_before_it_overwrites.trace(KV_CFG, BF16).calls) == 6


# ---- the names of weights


@block(x="tokens hidden_size", prefix="layers.{layer}.")
def like_named_weights(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    first = ops.linear(x, w.under("attn.").tensor("linear_1.weight", 64, 64))
    second = ops.linear(first, w.under("mlp.").tensor("linear_1.weight", 64, 64))
    third = ops.add(second, w.under("mlp.").tensor("out.bias", 64))
    fourth = ops.linear(third, w.tensor("linear_2.weight", 64, 64))
    fifth = ops.linear(fourth, w.under("experts.").tensor("0.weight", 64, 64))
    return ops.add(
        ops.linear(fifth, w.under("attn.").tensor("linear_1.weight", 64, 64)), w.tensor("positions", 64)
    )


def test_weights_of_like_names_and_those_named_as_something_else_stay_apart() -> None:
    graph = like_named_weights.trace(CFG, BF16)
    weights = {
        n.name: tensor_names(n.op.recipe)[0] for n in graph.inputs if isinstance(n.op, Input) and n.op.recipe
    }
    assert sorted(weights.values()) == [
        "layers.{layer}.attn.linear_1.weight",
        "layers.{layer}.experts.0.weight",
        "layers.{layer}.linear_2.weight",
        "layers.{layer}.mlp.linear_1.weight",
        "layers.{layer}.mlp.out.bias",
        "layers.{layer}.positions",
    ]
    assert weights["linear_1"] == "layers.{layer}.attn.linear_1.weight"
    assert weights["mlp_linear_1"] == "layers.{layer}.mlp.linear_1.weight"
    assert all(name.isidentifier() and name not in ("out", "positions") for name in weights)
    linears = [graph.operands(n.name)[1].node for n in graph.calls if n.op.name == "linear"]
    assert [weights[name].split("}.")[1] for name in linears] == [
        "attn.linear_1.weight",
        "mlp.linear_1.weight",
        "linear_2.weight",
        "experts.0.weight",
        "attn.linear_1.weight",
    ]


def test_a_value_that_nothing_uses_is_left_out_of_the_graph() -> None:
    @block(x="tokens hidden_size")
    def wasteful(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
        ops.silu(ops.linear(x, w.tensor("unused.weight", 64, 64)))
        return ops.silu(x)

    graph = wasteful.trace(CFG, BF16)
    assert [n.name for n in graph.nodes] == ["x", "silu_2"]


# ---- an op of one's own


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> dict[str, Op]:
    """The registry, put back afterwards."""
    monkeypatch.setattr("infernum.ir.op.OPS", dict(OPS))
    return OPS


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_a_new_pointwise_op_is_a_function_and_an_expression(dtype: DType) -> None:
    @pointwise("fminf(fmaxf({x}, -{limit}), {limit})")
    def limited(x: np.ndarray, *, limit: float) -> np.ndarray:
        """x, kept within ± limit."""
        return np.clip(x, -limit, limit)

    @block(x="tokens hidden_size")
    def clipped(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
        return limited(x, limit=0.5)

    graph: Graph = clipped.trace(CFG, dtype)
    (out,) = interpret(graph, {"x": np.linspace(-2, 2, 64, dtype=np.float32)[None]})
    assert out.min() == -0.5 and out.max() == 0.5


@pytest.mark.usefixtures("own")
def test_an_op_cannot_take_the_name_of_another() -> None:
    with pytest.raises(ValueError, match=r"an op named 'silu' exists already, in infernum\.ops\.pointwise"):

        @op("tokens width -> tokens width")
        def silu(x: np.ndarray) -> np.ndarray:
            return x


@block(x="tokens 64", prefix="layers.{layer}.")
def weights_of_all_kinds(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    q = ops.linear(x, w.rows("q_proj", "qkv_proj.weight", 96, 64, start=0, stop=64))
    k = ops.linear(q, w.rows("k_proj", "qkv_proj.weight", 96, 64, start=64, stop=96))
    up = ops.linear(k, w.tensor("up.weight", 64, 32, alternatives=("w3.weight",)))
    down = ops.linear(up, w.weight("down", Packed(read("down.weight", 64, 64), "transpose")))
    return ops.mul(down, ops.cast(w.tensor("scale", 64, dtype=F32), to="bf16"))


def test_a_weight_may_have_alternatives_be_rows_of_another_or_have_a_recipe_and_a_dtype_of_its_own() -> None:
    graph = weights_of_all_kinds.trace(CFG, BF16)
    found = {
        n.name: (n.op.recipe, n.types[0]) for n in graph.inputs if isinstance(n.op, Input) and n.op.recipe
    }
    qkv = read("layers.{layer}.qkv_proj.weight", 96, 64)
    up = Read(("layers.{layer}.up.weight", "layers.{layer}.w3.weight"), (64, 32))
    assert found == {
        "q_proj": (Rows(qkv, 0, 64), TensorType((64, 64), BF16)),
        "k_proj": (Rows(qkv, 64, 96), TensorType((32, 64), BF16)),
        "up": (up, TensorType((64, 32), BF16)),
        "down": (Packed(read("layers.{layer}.down.weight", 64, 64), "transpose"), TensorType((64, 64), BF16)),
        "scale": (read("layers.{layer}.scale", 64), TensorType((64,), F32)),
    }
    assert print_graph(parse_graph(print_graph(graph))) == print_graph(graph)


@block(x="tokens 64")
def stacked_rows(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    v, k = (w.rows(f"{n}_proj", "qkv", 96, 64, start=at, stop=at + 32) for n, at in (("v", 64), ("k", 32)))
    return ops.linear(x, ops.stack_rows(v, k))


def test_stacked_rows_become_one_weight_whose_recipe_is_the_stack() -> None:
    graph = fold_weights(stacked_rows.trace(CFG, BF16))
    (weight,) = [n for n in graph.inputs if isinstance(n.op, Input) and n.op.role == "weight"]
    qkv = read("qkv", 96, 64)
    assert weight.name == "v_k_proj"
    assert weight.op == Input("weight", Stack((Rows(qkv, 64, 96), Rows(qkv, 32, 64))))


def test_an_integer_weight_must_be_stored_as_it_is_held() -> None:
    trace = Trace(where=())
    words = Weights(trace, BF16).tensor("words", 8, dtype=I32)
    role = trace.entries[words.value.node][0].op
    assert isinstance(role, Input) and role.recipe == Read(("words",), (8,), "i32")


@block(x="tokens 64")
def too_many_rows(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return ops.linear(x, w.rows("q", "qkv", 96, 64, start=64, stop=97))  # here


def test_rows_that_a_tensor_does_not_have_are_an_error_at_their_line() -> None:
    with pytest.raises(ShapeError) as error:
        too_many_rows.trace(CFG, BF16)
    line = line_of(too_many_rows.function, "# here")
    assert str(error.value) == f"test_ops.py:{line}: qkv: has 96 rows, and not rows 64 to 97"
