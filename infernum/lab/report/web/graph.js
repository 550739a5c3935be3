// The graphs of a block before and after fusion, side by side: drawn once, then only marked anew.
"use strict";

const panes = {};

function startGraph() {
    for (const side of ["before", "after"]) panes[side] = makePane(side);
    document.getElementById("panes").append(panes.before.element, panes.after.element);
    new ResizeObserver(() => Object.values(panes).forEach((pane) => pane.resized())).observe(
        document.getElementById("panes"),
    );
}

function drawGraph() {
    drawGraphTools();
    for (const pane of Object.values(panes)) {
        pane.element.hidden = state.view !== "both" && state.view !== pane.side;
        if (!pane.element.hidden) pane.draw();
    }
}

function drawGraphTools() {
    const here = current();
    const views = [
        ["before", "Before", "The traced graph"],
        ["after", "After", "The fused graph"],
        ["both", "Both", "Side by side"],
    ];
    const view = h("div.segments", { role: "group", "aria-label": "Graphs shown" });
    segments(view, views, state.view, (chosen) => show({ view: chosen }));
    const fused = here.sides.after.nodes.filter((node) => node.body).map((node) => openKey(here, node.id));
    const allOpen = fused.length > 0 && fused.every((key) => state.open.has(key));
    const button = (text, title, onclick, pressed) =>
        h(
            "button",
            {
                type: "button",
                title,
                "aria-pressed": pressed === undefined ? null : String(pressed),
                onclick,
            },
            text,
        );
    document.getElementById("graph-tools").replaceChildren(
        view,
        button(
            "All inputs",
            "Draw weights and batch inputs as nodes too",
            () => show({ inputs: state.inputs === "all" ? "few" : "all" }),
            state.inputs === "all",
        ),
        fused.length
            ? button("Expand", "Show what every fused node holds", () => openAll(fused, !allOpen), allOpen)
            : "",
        button("Fit", "Show the whole graph (0)", fitPanes),
        state.marked
            ? button("Clear marks", "Forget the nodes that were marked (Esc)", () => show({ marked: null }))
            : "",
        h("span.note", `${times(here.kernels_before, "kernel")} before, ${here.kernels.length} after`),
    );
}

const openKey = (here, path) => `${here.block}.${here.variant}/${path}`;

function openAll(keys, open) {
    for (const key of keys) state.open[open ? "add" : "delete"](key);
    show({});
}

function toggleBody(here, path) {
    const key = openKey(here, path);
    openAll([key], !state.open.has(key));
    panes.after.reveal([path]);
}

function fitPanes() {
    for (const pane of Object.values(panes))
        if (!pane.element.hidden) pane.fit({ whole: true, smooth: true });
}

// Nodes on the other side that belong to the same kernel, or are the same view.
function counterparts(here, side, path) {
    const id = path.split("/")[0];
    if (side === "after") return here.cameFrom.get(id) ?? (here.sides.before.byId.has(id) ? [id] : []);
    const fate = here.became.get(id);
    return fate?.node ? [fate.node] : [];
}

// The nodes of each side to outline, given a node.
function linked(here, node) {
    if (!node) return { before: [], after: [] };
    const there = counterparts(here, node.side, node.path);
    const other = node.side === "before" ? "after" : "before";
    const siblings = node.side === "before" ? there.flatMap((id) => counterparts(here, "after", id)) : [];
    return { [node.side]: siblings, [other]: there };
}

function mark(pane, here) {
    const { side, canvas, drawing } = pane;
    const chosen = state.node?.side === side ? state.node.path : null;
    const outlined = new Set(linked(here, state.node)[side]);
    const marked = state.marked && new Set(state.marked[side]);
    canvas
        .selectAll("g.node")
        .classed("chosen", (box) => box.path === chosen && chosen !== null)
        .classed("linked", (box) => outlined.has(box.path))
        .classed("marked", (box) => Boolean(marked?.has(box.path)))
        .classed("dim", (box) => Boolean(marked) && !marked.has(box.path?.split("/")[0]));
    const id = chosen?.split("/")[0];
    canvas
        .selectAll("path.edge")
        .classed("chosen", (edge) => chosen !== null && (edge.fromPath === chosen || edge.toPath === chosen))
        .classed("dim", Boolean(marked));
    const target = id ? [id] : outlined.size ? [...outlined] : marked?.size ? [...marked] : null;
    if (target) pane.reveal(target.filter((name) => drawing.boxes.some((box) => box.id === name)));
    else pane.target = null;
}

function hover(side, path) {
    const here = current();
    const there = linked(here, side && { side, path });
    for (const pane of Object.values(panes)) {
        const names = new Set(there[pane.side]);
        pane.canvas.selectAll("g.node").classed("hovered", (box) => names.has(box.path));
    }
}
