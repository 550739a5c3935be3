// Where the nodes of a graph stand: boxes sized by their text, placed in layers by dagre.
"use strict";

const NETWORK_SIMPLEX_UP_TO = 200; // nodes; above, dagre's faster ranking
const MOST_WIDE = 230; // pixels of text in a box
const LINE = 15,
    EDGE_MARGIN = 6;

// A drawing of a graph: boxes and edges with coordinates, and its size.
//   inputs   "all", or "few": weights and batch inputs are named in the nodes that read them
//   open     whether a fused node is shown with its body
//   titleOf  the first lines of a node
//   outside  for the input of a body: the name of a hidden input that it stands for, or null
function drawingOf(graph, { inputs, open, titleOf, outside = null, prefix = "" }) {
    const isHidden = (node) =>
        node.kind === "input" &&
        (outside
            ? outside(node) !== null
            : inputs === "few" && (node.op === "weight" || node.op === "batch"));
    const look = {
        inputs,
        open,
        titleOf,
        isHidden,
        nameOf: (node) => outside?.(node) ?? node.id,
        inBody: outside !== null,
        prefix,
    };
    const boxes = graph.nodes.filter((node) => !isHidden(node)).map((node) => boxOf(graph, node, look));
    const there = new Set(boxes.map((box) => box.id));
    const links = boxes.flatMap((box) =>
        (box.node.operands ?? [])
            .map(([from], slot) => ({ from, to: box.id, name: `${slot}` }))
            .filter(({ from }) => there.has(from)),
    );
    graph.outputs.forEach(([from], i) => {
        if (!there.has(from)) return;
        const text = graph.outputs.length > 1 ? `result ${i}` : "result";
        boxes.push({
            id: ` result ${i}`,
            path: null,
            kind: "result",
            lines: [[text]],
            width: textWidth(text, "pill") + 24,
            height: 22,
        });
        links.push({ from, to: ` result ${i}`, name: "out" });
    });
    const { edges, ...size } = placed(boxes, links);
    return {
        boxes,
        edges: edges.map((edge) => ({ ...edge, fromPath: prefix + edge.from, toPath: prefix + edge.to })),
        ...size,
    };
}

function placed(boxes, links) {
    const layers = new dagre.graphlib.Graph({ multigraph: true });
    const ranker = boxes.length <= NETWORK_SIMPLEX_UP_TO ? "network-simplex" : "tight-tree";
    layers.setGraph({ rankdir: "TB", nodesep: 18, ranksep: 28, edgesep: 10, ranker });
    for (const { id, width, height } of boxes) layers.setNode(id, { width, height });
    for (const { from, to, name } of links) layers.setEdge(from, to, {}, name);
    dagre.layout(layers);
    const edges = layers
        .edges()
        .map(({ v, w, name }) => ({ from: v, to: w, points: layers.edge(v, w, name).points }));
    for (const box of boxes) Object.assign(box, { x: layers.node(box.id).x, y: layers.node(box.id).y });
    const points = edges.flatMap((edge) => edge.points);
    const [left, right] = d3.extent([
        ...boxes.flatMap((b) => [b.x - b.width / 2, b.x + b.width / 2]),
        ...points.map((p) => p.x),
    ]);
    const [top, bottom] = d3.extent([
        ...boxes.flatMap((b) => [b.y - b.height / 2, b.y + b.height / 2]),
        ...points.map((p) => p.y),
    ]);
    for (const place of [...boxes, ...points]) {
        place.x += EDGE_MARGIN - left;
        place.y += EDGE_MARGIN - top;
    }
    return { edges, width: right - left + 2 * EDGE_MARGIN, height: bottom - top + 2 * EDGE_MARGIN };
}

function boxOf(graph, node, look) {
    const path = look.prefix + node.id;
    if (node.kind === "input") {
        const lines = [[look.nameOf(node), look.inBody ? "" : node.op]];
        return {
            id: node.id,
            path,
            node,
            kind: "input",
            lines,
            width: widthOf(lines, "pill") + 24,
            height: 24,
        };
    }
    const minor = (node.operands ?? [])
        .map(([from]) => graph.byId.get(from))
        .filter(look.isHidden)
        .map(look.nameOf);
    const [title, subtitle] = look.titleOf(node, path);
    const lines = [[title, node.kind === "view" ? `%${node.id}` : ""]];
    if (subtitle) lines.push([fitText(subtitle, "line", MOST_WIDE)]);
    if (minor.length) lines.push([fitText(minor.join(" · "), "line", MOST_WIDE)]);
    if (node.kind !== "view")
        lines.push([`%${node.id}`, fitText(node.types.join(", "), "line", MOST_WIDE - 70)]);
    const width = Math.max(96, widthOf(lines, "title") + (node.body ? 20 : 0)) + 24;
    const box = { id: node.id, path, node, kind: node.kind, lines, width, height: 12 + lines.length * LINE };
    if (!node.body || !look.open(path)) return box;
    const operandOf = new Map(node.operands.map(([from, , param]) => [param, graph.byId.get(from)]));
    const body = drawingOf(node.body, {
        ...look,
        open: () => false,
        titleOf: (inner) => [inner.op],
        outside: (inner) => (look.isHidden(operandOf.get(inner.id)) ? operandOf.get(inner.id).id : null),
        prefix: `${path}/`,
    });
    const bodyTop = 10 + lines.length * LINE;
    return {
        ...box,
        body,
        bodyTop,
        width: Math.max(width, body.width + 16),
        height: bodyTop + body.height + 6,
    };
}

function widthOf(lines, firstFont) {
    const wide = ([left, right], i) =>
        textWidth(left, i ? "line" : firstFont) + (right ? textWidth(right, "line") + 14 : 0);
    return Math.max(...lines.map(wide));
}
