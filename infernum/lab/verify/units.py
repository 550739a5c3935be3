"""Units: the parts of a block that are checked alone, each a node of its graph and the steps that compute it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

import msgspec

from infernum import dims
from infernum.bundle import Bundle
from infernum.codegen.manifest import LIBRARY
from infernum.codegen.nvrtc import parse_arch
from infernum.codegen.places import Place, places_of
from infernum.dtypes import dtype as dtype_named
from infernum.ir.graph import Graph, Input, Node, Value
from infernum.ir.host import body_of, is_free
from infernum.ir.kernel import Target
from infernum.ir.op import Op
from infernum.ir.text import parse_graph
from infernum.manifest import (
    ANY,
    BlockVariant,
    Kernel,
    Launch,
    TensorSpec,
    VariantSpec,
    named_tensors,
    spec_of,
)


@dataclass(frozen=True)
class UnitProgram:
    """Steps that are launched alone and compute `node`. `variant` has no other steps.

    `operands` and `results` are the places of the node's operands and results, in its order. All other tensors that
    the steps name are scratch.
    """

    name: str
    node: Node
    variant: BlockVariant
    cubin: bytes = field(repr=False)
    operands: tuple[Place, ...]
    results: tuple[Place, ...]

    @property
    def named(self) -> list[str]:
        """The tensors that the steps name, in order of first use."""
        return list(dict.fromkeys(name for step in self.variant.steps for name in named_tensors(step)))

    @property
    def tensors(self) -> list[str]:
        """The tensors that the steps name, and those of operands that the steps do not read."""
        return list(dict.fromkeys([*self.named, *(place.tensor for place in self.operands)]))

    @property
    def scratch(self) -> set[str]:
        """The tensors that hold neither an operand nor a result."""
        return set(self.tensors) - {place.tensor for place in (*self.operands, *self.results)}

    def spec(self, name: str) -> TensorSpec:
        """Type and shape of a tensor that the steps name."""
        variant = self.variant
        listed = (*variant.stream_in, *variant.stream_out, *variant.batch, *variant.state)
        specs = {spec.name: spec for spec in listed}
        specs |= {name: each.spec for name, each in (*variant.buffers.items(), *variant.weights.items())}
        assert name in specs, f"{self.name}: names a tensor {name!r} that the manifest does not describe"
        return specs[name]


@dataclass(frozen=True)
class Unit:
    """One node of a block's graph that kernels compute, and the manifest's records of these kernels.

    `spec`: the class of steps that it is checked for.
    """

    bundle: Bundle
    variant: BlockVariant
    spec: VariantSpec
    graph: Graph
    node: Node
    program: UnitProgram = field(repr=False)
    kernels: tuple[Kernel, ...]

    def __str__(self) -> str:
        return f"{self.variant.block}.{self.variant.variant}: %{self.node.name} by {self.name}"

    @property
    def name(self) -> str:
        """The names of its kernels and library products."""
        return self.program.name

    @cached_property
    def body(self) -> Graph:
        """The primitive calls that the node stands for. Its inputs are the operands of the node, in their order."""
        return body_of(self.graph, self.node)

    @property
    def ops(self) -> tuple[str, ...]:
        """The primitive ops that the node computes, views among them."""
        return tuple(node.op.name for node in self.body.calls)

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that made the node."""
        return tuple(self.kernels[0].rules)

    @property
    def uses_library(self) -> bool:
        """True when cuBLASLt computes a product of the node."""
        return any(kernel.template == LIBRARY for kernel in self.kernels)

    @property
    def edited(self) -> bool:
        """True when a person changed one of its kernels."""
        edit = self.bundle.manifest.edits.get(self.variant.source)
        return edit is not None and any(kernel.name in edit.kernels for kernel in self.kernels)

    @property
    def tolerance(self) -> float:
        """The tolerance of the coarsest float type to which a value within the node is rounded."""
        return max(type_.dtype.tolerance for node in self.body.calls for type_ in node.types)

    @property
    def copies(self) -> bool:
        """True when every op, views aside, costs no FLOP: its results must keep every bit, also the sign of zero."""
        ones: dict[str, int] = dict.fromkeys((*dims.SYMBOLS, *dims.COSTS), 1)
        for node in self.body.calls:
            assert isinstance(node.op, Op), f"{self}: a call of its body is not primitive"
            operands = [self.body.type(value) for value in self.body.operands(node.name)]
            call = node.op.call(operands, node.types, node.attrs)
            if not is_free(node) and dims.evaluate(node.op.flops(call), ones) != 0:
                return False
        return True

    def role(self, place: Place) -> str:
        """The role of the block's input that a place lies in; "computed" elsewhere."""
        source = self.source(place)
        return source.op.role if source is not None and isinstance(source.op, Input) else "computed"

    def source(self, place: Place) -> Node | None:
        """The block's input that a place lies in, if any."""
        return next((node for node in self.graph.inputs if node.name == place.tensor), None)


def units_of(bundle: Bundle, variant: BlockVariant, serving: str | None = None) -> list[Unit]:
    """A unit for every node of a block variant that is no view; together they have all steps of the variant.

    Nodes whose kernels exchange words with other ranks are left out: they cannot run alone.
    `serving`: the class of steps for which they are checked; by default all steps that run the block variant.
    """
    once = ANY in bundle.manifest.blocks[variant.block]
    spec = spec_of(bundle.manifest.variants, serving or (ANY if once else variant.variant))
    graph = parse_graph(bundle.read(variant.graph).decode())
    cubin = bundle.read(variant.cubin)
    places = places_of(graph)
    pairs = list(zip(variant.steps, variant.kernels, strict=True))
    steps = {node: list(group) for node, group in groupby(pairs, key=lambda pair: pair[1].node)}
    nodes = [node for node in graph.calls if not is_free(node)]
    where = f"{variant.block}.{variant.variant}"
    assert [node.name for node in nodes] == list(steps), f"{where}: its steps are of {list(steps)}"
    units: list[Unit] = []
    for node in nodes:
        if any(isinstance(step, Launch) and step.exchanged for step, _ in steps[node.name]):
            continue
        kernels = tuple(kernel for _, kernel in steps[node.name])
        program = UnitProgram(
            " + ".join(kernel.name for kernel in kernels),
            node,
            msgspec.structs.replace(variant, steps=[step for step, _ in steps[node.name]]),
            cubin,
            tuple(places[value] for value in graph.operands(node.name)),
            tuple(places[Value(node.name, i)] for i in range(len(node.types))),
        )
        unit = Unit(bundle, variant, spec, graph, node, program, kernels)
        for place in program.results:
            assert place.tensor in program.named, f"{unit}: does not write {place.tensor}"
        unknown = [name for name in program.scratch if not name.startswith(f"{node.name}.")]
        assert not unknown, (
            f"{unit}: names {unknown}, which are neither operands, results nor scratch of its node"
        )
        units.append(unit)
    return units


def target_of(bundle: Bundle, spec: VariantSpec) -> Target:
    """The target for which blocks of the bundle were compiled, for one class of steps."""
    manifest = bundle.manifest
    return Target(
        parse_arch(bundle.arch),
        spec.name,
        spec.min_tokens,
        spec.max_tokens,
        dtype_named(manifest.dtype),
        decodes=spec.decodes,
    )
