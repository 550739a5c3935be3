"""One graph of a bundle for a paper: as DOT text, or drawn as SVG."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Literal

from infernum.ir.graph import Graph, Input, Node
from infernum.lab.explain.graphs import costs_nothing
from infernum.lab.report.graphs import ops_of
from infernum.lab.report.layout import GraphLayout, Point, lay_out
from infernum.manifest import BlockVariant

LINE, PADDING, MARGIN = 15.0, 9.0, 8.0
SIZES = (12.5, 11.0)
"""Pixels of the first line of a box, and of the others."""


@dataclass(frozen=True)
class Box:
    """A node as it is drawn: lines of text, the first one bold, and the hue of its kernel in degrees (None: grey)."""

    name: str
    kind: Literal["input", "view", "kernel", "result"]
    lines: tuple[str, ...]
    hue: float | None = None

    @property
    def size(self) -> tuple[float, float]:
        widths = [text_width(line, SIZES[min(i, 1)]) for i, line in enumerate(self.lines)]
        return max(70.0, max(widths) + 2 * PADDING + 4), len(self.lines) * LINE + 2 * PADDING - 4


@dataclass(frozen=True)
class Picture:
    """What there is to draw: boxes, and edges between them; an edge of the KV cache is dashed."""

    title: str
    boxes: tuple[Box, ...]
    edges: Mapping[tuple[str, str], bool]


def picture_of(graph: Graph, block: BlockVariant, *, before: bool) -> Picture:
    """The picture of one graph of a block. Weights and inputs of the step are named in the boxes that read them."""
    kernels: dict[str, list[str]] = {}
    for kernel in block.kernels:
        for node in kernel.origin if before else [kernel.node]:
            kernels.setdefault(node, []).append(kernel.name)
    hues = _hues(block)
    at = {name: kernel.node for kernel in reversed(block.kernels) for name in kernel.origin}
    minor = {n.name for n in graph.inputs if isinstance(n.op, Input) and n.op.role in ("weight", "batch")}

    def box(node: Node) -> Box:
        types = ", ".join(map(str, node.types))
        if node.is_input:
            return Box(node.name, "input", (f"{node.name}: {types}",))
        read = [v.node for v in graph.operands(node.name) if v.node in minor]
        named = kernels.get(node.name, []) if not before else []
        lines = [" + ".join(named), " → ".join(ops_of(node))] if named else [node.op.name]
        lines += [", ".join(dict.fromkeys(read))] if read else []
        hue = hues.get(at.get(node.name, "") if before else node.name)
        return Box(
            node.name, "view" if costs_nothing(node) else "kernel", (*lines, f"%{node.name}: {types}"), hue
        )

    shown = [node for node in graph.nodes if node.name not in minor]
    results = [Box(f"result {i}", "result", ("result",)) for i, _ in enumerate(graph.outputs)]
    edges = {
        (value.node, node.name): isinstance(op := graph.node(value.node).op, Input) and op.role == "state"
        for node in shown
        for value in graph.operands(node.name)
        if value.node not in minor
    }
    edges |= {(value.node, f"result {i}"): False for i, value in enumerate(graph.outputs)}
    what = "before" if before else "after"
    return Picture(f"{block.block}.{block.variant}, {what} fusion", (*map(box, shown), *results), edges)


def dot_of(picture: Picture) -> str:
    """The picture as text for Graphviz. Same picture, same text."""
    lines = [
        f"digraph {json.dumps(picture.title)} {{",
        '  node [shape=box, style=filled, fontname="Helvetica", fontsize=11, color="#b9b6ae", fillcolor=white];',
        '  edge [color="#77746c", arrowsize=0.7];',
    ]
    for box in picture.boxes:
        label = json.dumps("\n".join(box.lines), ensure_ascii=False)
        look = ""
        if box.kind in ("input", "result"):
            look = ', style="rounded,filled"'
        elif box.kind == "view":
            look = ', style="dashed,filled", fillcolor="#f6f5f2"'
        elif box.hue is not None:
            look = f', color="{_colour(box.hue, 0.42, 0.45)}", fillcolor="{_colour(box.hue, 0.94, 0.6)}"'
        lines.append(f"  {json.dumps(box.name)} [label={label}{look}];")
    for (start, end), dashed in picture.edges.items():
        lines.append(f"  {json.dumps(start)} -> {json.dumps(end)}{' [style=dashed]' if dashed else ''};")
    return "\n".join([*lines, "}", ""])


def svg_of(picture: Picture) -> str:
    """The picture drawn, without any program's help. Same picture, same text."""
    boxes = {box.name: box for box in picture.boxes}
    layout = lay_out({name: box.size for name, box in boxes.items()}, list(picture.edges))
    width, height = layout.width + 2 * MARGIN, layout.height + 2 * MARGIN
    view = f'viewBox="{-MARGIN:g} {-MARGIN:g} {width:.1f} {height:.1f}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.1f}" height="{height:.1f}" {view}',
            '  font-family="Helvetica, Arial, sans-serif">',
            f"<title>{escape(picture.title)}</title>",
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"',
            '  markerUnits="userSpaceOnUse" orient="auto">',
            '  <path d="M0,0.8 L8,4 L0,7.2 Z" fill="#77746c"/></marker></defs>',
            '<g fill="none" stroke="#77746c">',
            *(_edge(layout.paths[edge], dashed=dashed) for edge, dashed in picture.edges.items()),
            "</g>",
            *(line for box in picture.boxes for line in _box(box, layout)),
            "</svg>",
            "",
        ]
    )


def _edge(points: tuple[Point, ...], *, dashed: bool) -> str:
    """A curve through points that leaves and enters each of them vertically."""
    (x, y), *rest = points
    path = f"M{x:.1f},{y:.1f}"
    for next_x, next_y in rest:
        middle = (y + next_y) / 2
        straight = f"L{next_x:.1f},{next_y:.1f}"
        curve = f"C{x:.1f},{middle:.1f} {next_x:.1f},{middle:.1f} {next_x:.1f},{next_y:.1f}"
        path += straight if abs(x - next_x) < 0.05 else curve
        x, y = next_x, next_y
    dash = ' stroke-dasharray="5 3"' if dashed else ""
    return f'<path d="{path}" marker-end="url(#arrow)"{dash}/>'


def _box(box: Box, layout: GraphLayout) -> list[str]:
    (x, y), (width, height) = layout.centres[box.name], box.size
    fill, stroke, dash = "#ffffff", "#a5a29a", ""
    if box.kind == "view":
        fill, dash = "#f6f5f2", ' stroke-dasharray="3 2"'
    elif box.hue is not None:
        fill, stroke = _colour(box.hue, 0.94, 0.6), _colour(box.hue, 0.42, 0.45)
    radius = 3 if box.kind in ("view", "kernel") else height / 2
    place = f'x="{x - width / 2:.1f}" y="{y - height / 2:.1f}" width="{width:.1f}" height="{height:.1f}"'
    lines = [f'<rect {place} rx="{radius:g}" fill="{fill}" stroke="{stroke}"{dash}/>']
    for i, text in enumerate(box.lines):
        bold = ' font-weight="bold"' if i == 0 and box.kind == "kernel" else ""
        colour = "#1d1c1a" if i == 0 else "#55534d"
        baseline = y - height / 2 + PADDING + 9 + i * LINE
        lines.append(
            f'<text x="{x:.1f}" y="{baseline:.1f}" text-anchor="middle" font-size="{SIZES[min(i, 1)]:g}"'
            f'{bold} fill="{colour}">{escape(text)}</text>'
        )
    return lines


def text_width(text: str, size: float) -> float:
    """Pixels that a text may take in a sans-serif font, rather a little more than less."""
    narrow, wide = "iljtfr.,:;|!'()[]{} ", "mwMW@%→"
    return size * sum(0.36 if c in narrow else 0.92 if c in wide else 0.61 for c in text)


def _hues(block: BlockVariant) -> dict[str, float]:
    """A hue for each node that has kernels: steps of the golden angle, so that neighbours differ."""
    nodes = dict.fromkeys(kernel.node for kernel in block.kernels)
    return {node: (28 + i * 137.508) % 360 for i, node in enumerate(nodes)}


def _colour(hue: float, lightness: float, saturation: float) -> str:
    parts = colorsys.hls_to_rgb(hue / 360, lightness, saturation)
    return "#" + "".join(f"{round(part * 255):02x}" for part in parts)
