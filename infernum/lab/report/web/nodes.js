// Boxes and edges of a drawing as SVG, and what happens when they are pointed at.
"use strict";

// First lines of a node: what runs and what it holds after fusion, the op before.
function titlesOf(here, side) {
    return (node, path) => {
        const kernels = here.kernelsAt(side, path);
        if (side === "before" || !kernels.length) return [node.op];
        const names = kernels.map((i) => here.kernels[i].name);
        return [names.length > 1 ? `${names[0]} + ${names.length - 1}` : names[0], opsOf(node).join(" → ")];
    };
}

function render(pane, here) {
    const { canvas, drawing, side } = pane;
    canvas.selectAll("*").remove();
    renderInto(canvas, drawing, {
        here,
        side,
        arrow: pane.arrow,
        hueAt: (box) => here.hueAt(side, box.path),
    });
}

function renderInto(parent, drawing, { here, side, arrow, hueAt, inner = false }) {
    const line = d3
        .line(
            (p) => p.x,
            (p) => p.y,
        )
        .curve(d3.curveBasis);
    const kinds = new Map(drawing.boxes.map((box) => [box.id, box.node?.op]));
    parent
        .append("g")
        .selectAll("path")
        .data(drawing.edges)
        .join("path")
        .attr("class", (edge) => (kinds.get(edge.from) === "state" ? "edge state" : "edge"))
        .attr("d", (edge) => line(edge.points))
        .attr("marker-end", `url(#${arrow})`);
    const nodes = parent
        .append("g")
        .selectAll("g.node")
        .data(drawing.boxes)
        .join("g")
        .attr("class", (box) => `node ${box.kind}${inner ? " inner" : ""}`)
        .attr("transform", (box) => `translate(${box.x - box.width / 2},${box.y - box.height / 2})`)
        .style("--hue-fill", (box) => fillOf(hueAt(box)))
        .style("--hue-line", (box) => lineOf(hueAt(box)));
    const chosen = nodes
        .filter((box) => box.path !== null)
        .attr("data-path", (box) => box.path)
        .attr("tabindex", inner ? null : 0)
        .attr("role", "button")
        .attr("aria-label", (box) => `${box.node.op} ${box.path}`)
        .on("click", (event, box) => {
            event.stopPropagation();
            showNode(side, box.path);
        })
        .on("keydown", (event, box) => event.key === "Enter" && showNode(side, box.path));
    if (!inner)
        chosen.on("mouseenter", (_, box) => hover(side, box.path)).on("mouseleave", () => hover(null));
    nodes
        .append("rect")
        .attr("class", "box")
        .attr("width", (box) => box.width)
        .attr("height", (box) => box.height)
        .attr("rx", (box) => (box.kind === "input" || box.kind === "result" ? 11 : 4));
    nodes
        .filter((box) => box.kind !== "input" && box.kind !== "result" && !inner)
        .append("rect")
        .attr("class", "stripe")
        .attr("width", 4)
        .attr("height", (box) => box.height)
        .attr("rx", 2);
    nodes.each(function (box) {
        const single = box.lines.length === 1;
        box.lines.forEach(([left, right], i) => {
            const baseline = box.body || !single ? 19 + i * 15 : box.height / 2 + 4;
            d3.select(this)
                .append("text")
                .attr("class", i ? "line" : "title")
                .attr("x", 12)
                .attr("y", baseline)
                .text(left);
            if (right)
                d3.select(this)
                    .append("text")
                    .attr("class", "line right")
                    .attr("x", box.width - 10)
                    .attr("y", baseline)
                    .text(right);
        });
    });
    nodes
        .filter((box) => box.node?.body && side === "after")
        .append("g")
        .attr("class", "fold")
        .attr("role", "button")
        .attr("transform", (box) => `translate(${box.width - 17},13)`)
        .on("click", (event, box) => {
            event.stopPropagation();
            toggleBody(here, box.path);
        })
        .call((fold) => {
            fold.append("title").text("Show or hide what this node holds");
            fold.append("circle").attr("r", 8);
            fold.append("path").attr("d", (box) => (box.body ? "M-3.5,0H3.5" : "M-3.5,0H3.5M0,-3.5V3.5"));
        });
    nodes
        .filter((box) => box.body)
        .each(function (box) {
            const inside = d3
                .select(this)
                .append("g")
                .attr("class", "body")
                .attr("transform", `translate(${(box.width - box.body.width) / 2},${box.bodyTop})`);
            renderInto(inside, box.body, { here, side, arrow, hueAt: () => hueAt(box), inner: true });
        });
}
