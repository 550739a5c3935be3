"""Layered layout of a graph: layers by dependence, order by barycentres, columns that keep edges straight.

After Sugiyama, Tagawa and Toda, "Methods for visual understanding of hierarchical system structures", 1981. An edge
over several layers goes through a bend in each of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean

import networkx as nx

COLUMN_GAP, LAYER_GAP, BEND_GAP = 22.0, 34.0, 12.0
SWEEPS = 12
PORT_GAP = 14.0
PULLS = (2, 1, 8)
"""How strongly an edge pulls its ends into one column, by how many of them are bends: long edges run straight."""

Edge = tuple[str, str]
Point = tuple[float, float]


@dataclass(frozen=True)
class GraphLayout:
    """Centres of boxes, the points that each edge goes through from bottom to top of boxes, and the size of it all."""

    centres: Mapping[str, Point]
    paths: Mapping[Edge, tuple[Point, ...]]
    width: float
    height: float


@dataclass
class _Layers:
    """Boxes and bends in layers, from left to right, with the edges between neighbouring layers."""

    rows: list[list[str]]
    above: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    below: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def lay_out(sizes: Mapping[str, tuple[float, float]], edges: Sequence[Edge]) -> GraphLayout:
    """Places for boxes of the given widths and heights, so that edges lead downwards. Same input, same layout."""
    data: nx.DiGraph[str] = nx.DiGraph()
    data.add_nodes_from(sizes)
    data.add_edges_from(edges)
    ranks = _ranks(data)
    layers, chains = _with_bends(data, ranks)
    _order(layers)
    widths = {name: sizes[name][0] if name in sizes else 0.0 for row in layers.rows for name in row}
    x = _columns(layers, widths)
    heights = [max(sizes[name][1] for name in row if name in sizes) for row in layers.rows]
    tops = [sum(heights[:i]) + LAYER_GAP * i for i in range(len(heights))]
    middle = {n: tops[i] + heights[i] / 2 for i, row in enumerate(layers.rows) for n in row}
    left = min(x[n] - widths[n] / 2 for n in x)
    centres = {n: (x[n] - left, middle[n]) for n in x}

    def ports(name: str, ends: Iterable[Edge], toward: int) -> dict[Edge, float]:
        """Where along a box edges begin or end: side by side, in the order of where they go or come from."""
        near = {edge: ([edge[0], *chains[edge], edge[1]])[toward] for edge in ends}
        ordered = sorted(near, key=lambda edge: centres[near[edge]][0])
        gap = min(PORT_GAP, sizes[name][0] * 0.7 / max(len(ordered), 1))
        return {edge: centres[name][0] + gap * (i - (len(ordered) - 1) / 2) for i, edge in enumerate(ordered)}

    starts = {e: x for n in sizes for e, x in ports(n, [e for e in chains if e[0] == n], 1).items()}
    ends = {e: x for n in sizes for e, x in ports(n, [e for e in chains if e[1] == n], -2).items()}

    def path(edge: Edge) -> tuple[Point, ...]:
        bends = [
            (centres[bend][0], y)
            for bend in chains[edge]
            for y in (tops[ranks[bend]], tops[ranks[bend]] + heights[ranks[bend]])
        ]
        start = (starts[edge], centres[edge[0]][1] + sizes[edge[0]][1] / 2)
        return (start, *bends, (ends[edge], centres[edge[1]][1] - sizes[edge[1]][1] / 2))

    return GraphLayout(
        {name: centres[name] for name in sizes},
        {edge: path(edge) for edge in chains},
        max(x[n] + widths[n] / 2 for n in x) - left,
        tops[-1] + heights[-1],
    )


def _ranks(data: nx.DiGraph[str]) -> dict[str, int]:
    """Layers: below all that is read, and what reads nothing just above its first user."""
    ranks = {n: i for i, generation in enumerate(nx.topological_generations(data)) for n in generation}
    for name in list(ranks):
        users = [ranks[user] for user in data.successors(name)]
        if users and not data.in_degree(name):
            ranks[name] = min(users) - 1
    return ranks


def _with_bends(data: nx.DiGraph[str], ranks: dict[str, int]) -> tuple[_Layers, dict[Edge, list[str]]]:
    """The layers, and the bends of each edge, which get ranks too."""
    layers = _Layers([[] for _ in range(max(ranks.values()) + 1)])
    for name in data.nodes:
        layers.rows[ranks[name]].append(name)
    chains: dict[Edge, list[str]] = {}
    for upper, lower in list(data.edges):
        chain = [f"{upper} {lower} {rank}" for rank in range(ranks[upper] + 1, ranks[lower])]
        for bend, rank in zip(chain, range(ranks[upper] + 1, ranks[lower]), strict=True):
            ranks[bend] = rank
            layers.rows[rank].append(bend)
        for a, b in zip([upper, *chain], [*chain, lower], strict=True):
            layers.below[a].append(b)
            layers.above[b].append(a)
        chains[upper, lower] = chain
    return layers, chains


def _order(layers: _Layers) -> None:
    """Order each layer by the mean place of its neighbours, down and up in turn, and keep what crosses least."""
    best = [list(row) for row in layers.rows]
    fewest = _crossings(layers, best)
    rows = [list(row) for row in best]
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        neighbours = layers.above if down else layers.below
        indices = range(1, len(rows)) if down else range(len(rows) - 2, -1, -1)
        for i in indices:
            fixed = {name: at for at, name in enumerate(rows[i - 1 if down else i + 1])}
            mean = {
                name: fmean([fixed[n] for n in neighbours[name] if n in fixed] or [at])
                for at, name in enumerate(rows[i])
            }
            rows[i].sort(key=mean.__getitem__)
        crossings = _crossings(layers, rows)
        if crossings < fewest:
            best, fewest = [list(row) for row in rows], crossings
    layers.rows = best


def _crossings(layers: _Layers, rows: Sequence[Sequence[str]]) -> int:
    count = 0
    for upper, lower in pairwise(rows):
        at = {name: i for i, name in enumerate(lower)}
        ends = [at[user] for name in upper for user in sorted(layers.below[name], key=at.__getitem__)]
        count += sum(a > b for i, a in enumerate(ends) for b in ends[i + 1 :])
    return count


def _columns(layers: _Layers, widths: Mapping[str, float]) -> dict[str, float]:
    """Centres from left to right: boxes keep their distance, and the weighted sum of the edges' widths is least.

    That is the dual of a flow of least cost, which networkx finds: an edge carries at most its pull, either way, and a
    distance between neighbours in a row is a gain. Centres are then lengths of shortest paths in what the flow leaves
    (Gansner, Koutsofios, North and Vo, "A technique for drawing directed graphs", 1993, solve the same problem).
    """
    flow_graph: nx.DiGraph[str] = nx.DiGraph()
    for row in layers.rows:
        flow_graph.add_nodes_from(row)
        for left, right in pairwise(row):
            gap = COLUMN_GAP if widths[left] and widths[right] else BEND_GAP
            flow_graph.add_edge(left, right, weight=-round((widths[left] + widths[right]) / 2 + gap))
    for upper, lowers in layers.below.items():
        for lower in lowers:
            pull = PULLS[(not widths[upper]) + (not widths[lower])]
            flow_graph.add_edge(upper, lower, weight=0, capacity=pull)
            flow_graph.add_edge(lower, upper, weight=0, capacity=pull)
    _, flow = nx.network_simplex(flow_graph)
    residual: nx.DiGraph[str] = nx.DiGraph()
    residual.add_nodes_from(flow_graph)
    for start, end, edge in flow_graph.edges(data=True):
        used = flow[start][end]
        if "capacity" not in edge or used < edge["capacity"]:
            _shorten(residual, start, end, edge["weight"])
        if used:
            _shorten(residual, end, start, -edge["weight"])
    residual.add_weighted_edges_from(("", name, 0) for name in flow_graph)
    lengths = nx.single_source_bellman_ford_path_length(residual, "")
    return {name: -float(lengths[name]) for name in flow_graph}


def _shorten(data: nx.DiGraph[str], start: str, end: str, weight: int) -> None:
    if not data.has_edge(start, end) or data.edges[start, end]["weight"] > weight:
        data.add_edge(start, end, weight=weight)
