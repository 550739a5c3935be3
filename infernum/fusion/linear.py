"""Rules around matrix products: products of one input merged, biases and residuals taken into the epilogue."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from infernum.ir.block import Tensor
from infernum.ir.graph import Graph, Input, Node, TensorType
from infernum.ir.kernel import Library, LoadTime, Target, Template, choose
from infernum.ir.op import Fused, Op
from infernum.ir.rewrite import Site, absorb, rewrite
from infernum.ops import add, columns, linear, stack_rows


def host_of(node: Node) -> tuple[Graph, Node] | None:
    """The matrix product that a node computes, alone or with fused neighbours, and the graph it stands in."""
    if isinstance(node.op, Op):
        return None if node.op is not linear else (Graph.build("", [(node, ())], []), node)
    if isinstance(node.op, Fused) and not node.op.kernels:
        calls = [n for n in node.op.body.calls if n.op is linear]
        return (node.op.body, calls[0]) if len(calls) == 1 else None
    return None


def is_product(node: Node) -> bool:
    """True for a matrix product, alone or with fused neighbours."""
    return node.op is linear or (isinstance(node.op, Fused) and host_of(node) is not None)


def rows_slot(node: Node) -> int | None:
    """The operand of a product's node that holds the rows it multiplies; None for rows computed or added inside."""
    if not isinstance(node.op, Fused):
        return 0
    body, product = node.op.body, next(n for n in node.op.body.calls if n.op is linear)
    rows = body.operands(product.name)[0]
    inputs = [n.name for n in body.inputs]
    return inputs.index(rows.node) if rows.node in inputs and len(body.users(rows)) == 1 else None


def added_inside(node: Node) -> list[TensorType]:
    """Types of the values that a fused product already adds to its sum."""
    if not isinstance(node.op, Fused):
        return []
    body = node.op.body
    reads = [v for n in body.calls if n.op is add for v in body.operands(n.name)]
    return [body.type(v) for v in reads if body.node(v.node).is_input]


def served_by(graph: Graph, node: Node, target: Target) -> Template | Library | str:
    """The kernel that a matrix product gets for this target, or why it gets none."""
    if isinstance(node.op, Fused):
        body = node.op.body
        node = next(n for n in body.calls if n.op is linear)
        graph = body
    types = [graph.type(v) for v in graph.operands(node.name)]
    choice = choose(linear.emit, linear.call(types, node.types, node.attrs), target)  # pyright: ignore[reportArgumentType]
    return choice if isinstance(choice, str) else choice.kernel


def needs_gemv(graph: Graph, node: Node, target: Target) -> str | None:
    """Refuses a product that is left to the library."""
    kernel = served_by(graph, node, target)
    if isinstance(kernel, Template):
        return None
    return (
        f"{node.name} runs as a library product at up to {target.max_tokens} tokens; a GEMV serves at most 8"
    )


def needs_library(graph: Graph, node: Node, target: Target) -> str | None:
    """Refuses a product that the GEMV computes, or to which the library adds a matrix already."""
    if not isinstance(served_by(graph, node, target), Library):
        return f"{node.name} runs as a GEMV for the variant {target.variant}"
    matrices = [t for t in added_inside(node) if len(t.shape) > 1]
    return (
        f"the library adds one matrix to {node.name}, and that is a {matrices[0]} already"
        if matrices
        else None
    )


def any_product(graph: Graph, node: Node, target: Target) -> str | None:
    """Accepts a product whatever computes it, unless it is the library and adds a vector already."""
    kernel = served_by(graph, node, target)
    if isinstance(kernel, str):
        return kernel
    vectors = [t for t in added_inside(node) if len(t.shape) == 1]
    if isinstance(kernel, Library) and vectors:
        return f"the library adds one vector to {node.name}, and that is a {vectors[0]} already"
    return None


def _is_vector(site: Site, name: str) -> bool:
    return len(site.type(name).shape) == 1


def _bias_is_a_vector(site: Site) -> str | None:
    if _is_vector(site, "bias"):
        return None
    return f"the addend {site.match.inputs['bias']} is {site.type('bias')}: a residual, not a bias vector"


def _residual_fits(site: Site) -> str | None:
    y, residual = site.type("y"), site.type("residual")
    if y == residual:
        return None
    values = site.match.inputs
    addend = f"the addend {values['residual']} is {residual}, but the product {values['y']} is {y}"
    return f"{addend}: a residual has its type"


def not_weights(site: Site, *names: str) -> str | None:
    """Refuses to stack, when a checkpoint is loaded, what is only known when a step runs."""
    for name in names:
        node = site.producer(name)
        stacked = isinstance(node.op, Op) and isinstance(node.op.emit, LoadTime)
        if not stacked and not (isinstance(node.op, Input) and node.op.role == "weight"):
            return (
                f"{name} is %{node.name}, computed in each step: "
                "only weights can be stacked when a checkpoint is loaded"
            )
    return None


def slices_suffice(site: Site) -> str | None:
    """What a block returns is a tensor of its own, not columns of another."""
    returned = [v for v in site.graph.outputs if v.node in site.match.names]
    return (
        f"{returned[0]} is an output of the block, which columns of a merged product cannot be"
        if returned
        else None
    )


def _stackable(site: Site) -> str | None:
    return not_weights(site, "q", "k", "v") or slices_suffice(site)


@rewrite(why="Three products of one input read it once, and run as one kernel.", when=_stackable)
def merge_qkv(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Iterator[object]:
    yield linear(x, q), linear(x, k), linear(x, v)
    sizes = [w.shape[0] for w in (q, k, v)]
    merged = linear(x, stack_rows(q, k, v))
    yield split_columns(merged, sizes)


def split_columns(merged: Tensor, sizes: list[int | str]) -> tuple[Tensor, ...]:
    """The result of a product with stacked weights, taken apart again."""
    parts: list[Tensor] = []
    start = 0
    for size in sizes:
        assert isinstance(size, int), "weights have static shapes"
        parts.append(columns(merged, start=start, stop=start + size))
        start += size
    return tuple(parts)


def _biases_cover_the_columns(site: Site) -> str | None:
    ends = sorted((site.match.attrs[f"{n}_start"], site.match.attrs[f"{n}_stop"]) for n in "qkv")
    covered = ends[0][0] == 0 and all(a[1] == b[0] for a, b in pairwise(ends))
    if not covered or ends[-1][1] != site.type("y").width:
        return f"columns {ends} do not cover {site.match.inputs['y']}: {site.type('y')}"
    found = [(site.match.attrs[f"{n}_start"], site.match.attrs[f"{n}_stop"]) for n in "qkv"]
    if ends != found:
        return f"biases are added to columns {found}, not in the order {ends} in which they lie"
    wrong = [
        f"{n}_bias is {site.type(f'{n}_bias')}, not a vector"
        for n in "qkv"
        if not _is_vector(site, f"{n}_bias")
    ]
    return wrong[0] if wrong else not_weights(site, "q_bias", "k_bias", "v_bias") or slices_suffice(site)


@rewrite(
    why="The biases of a merged product become one vector, which its epilogue can add.",
    when=_biases_cover_the_columns,
)
def merge_qkv_bias(
    y: Tensor, q_bias: Tensor, k_bias: Tensor, v_bias: Tensor,
    *, q_start: int, q_stop: int, k_start: int, k_stop: int, v_start: int, v_stop: int,
) -> Iterator[object]:  # fmt: skip
    yield (
        add(columns(y, start=q_start, stop=q_stop), q_bias),
        add(columns(y, start=k_start, stop=k_stop), k_bias),
        add(columns(y, start=v_start, stop=v_stop), v_bias),
    )
    biased = add(y, stack_rows(q_bias, k_bias, v_bias))
    yield split_columns(biased, [q_stop - q_start, k_stop - k_start, v_stop - v_start])


@absorb(
    "epilogue",
    why="A bias is added to the sum in registers, not by a kernel of its own. In a library product the sum is then not "
    "rounded by itself.",
    is_host=is_product,
    host=any_product,
    when=_bias_is_a_vector,
)
def bias_into_linear(y: Tensor, bias: Tensor) -> Tensor:
    return add(y, bias)


@absorb(
    "epilogue",
    why="The residual is added to the sum in registers, so that the product is never written by itself.",
    is_host=is_product,
    host=needs_gemv,
    when=_residual_fits,
)
def residual_into_gemv(y: Tensor, residual: Tensor) -> Tensor:
    return add(y, residual)


@absorb(
    "epilogue",
    why="The library adds the residual (its beta · C) to the product before it is rounded, and writes it once.",
    is_host=is_product,
    host=needs_library,
    when=_residual_fits,
)
def residual_into_gemm(y: Tensor, residual: Tensor) -> Tensor:
    return add(y, residual)
