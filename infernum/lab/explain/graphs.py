"""The graphs of a bundle, read back: as traced, and as the rules left them."""

from __future__ import annotations

import infernum.ops  # noqa: F401 - registers what graphs call
from infernum.bundle import Bundle
from infernum.errors import BundleError, CompileError
from infernum.ir.graph import Graph, Node
from infernum.ir.kernel import LoadTime, View
from infernum.ir.op import Op
from infernum.ir.parse import parse_graph
from infernum.manifest import BlockVariant


def read_graph(bundle: Bundle, name: str) -> Graph:
    """The graph in a file of a bundle. Raises BundleError where it calls an op that is not known."""
    text = bundle.read(name).decode()
    try:
        return parse_graph(text)
    except CompileError as error:
        used = ", ".join(plugin.name for plugin in bundle.manifest.plugins)
        plugin = f"the bundle was compiled with {used}: give it with --plugin"
        mend = plugin if used else "compile the model again"
        raise BundleError(f"{bundle.folder / name}: {error}; {mend}") from error


def graphs_of(bundle: Bundle, variant: BlockVariant) -> tuple[Graph, Graph]:
    """The graph of a block as traced, and as it is for one variant."""
    return read_graph(bundle, variant.traced), read_graph(bundle, variant.graph)


def costs_nothing(node: Node) -> bool:
    """True for a view, and for what is done once, when weights are loaded."""
    return isinstance(node.op, Op) and isinstance(node.op.lowering, View | LoadTime)
