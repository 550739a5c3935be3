// One side of the graphs: an SVG that is zoomed and panned, and what it shows at first.
"use strict";

const READABLE = 0.62; // scale below which the first view rather begins at the top
const REVEAL_MARGIN = 16;
const LEAST = 0.5; // scale below which it rather leaves out what is at the sides
const TITLES_OF_SIDES = { before: "Before fusion", after: "After fusion" };

function makePane(side) {
    const svg = d3.create("svg").attr("tabindex", 0).attr("aria-label", TITLES_OF_SIDES[side]);
    const arrow = `arrow-${side}`;
    svg.append("defs")
        .append("marker")
        .attr("id", arrow)
        .attr("viewBox", "0 0 8 8")
        .attr("refX", 7)
        .attr("refY", 4)
        .attr("markerUnits", "userSpaceOnUse")
        .attr("markerWidth", 8)
        .attr("markerHeight", 8)
        .attr("orient", "auto")
        .append("path")
        .attr("class", "arrow")
        .attr("d", "M0,0.8 L8,4 L0,7.2 Z");
    const canvas = svg.append("g");
    const zoom = d3
        .zoom()
        .scaleExtent([0.03, 3])
        .on("zoom", (event) => {
            canvas.attr("transform", event.transform);
            if (event.sourceEvent) pane.moved = true;
        });
    svg.call(zoom).on("dblclick.zoom", null);
    svg.on("click", (event) => event.target === svg.node() && state.node && show({ node: null }));
    const title = h("h2", TITLES_OF_SIDES[side]);
    const element = h("div.pane", { "data-side": side }, title, svg.node());

    const pane = {
        side,
        element,
        svg,
        canvas,
        zoom,
        arrow,
        title,
        drawn: null,
        drawing: null,
        fitted: null,
        moved: false,
        target: null,
        width: 0,
        draw() {
            const here = current();
            const opened = [...state.open]
                .filter((key) => key.startsWith(`${here.block}.${here.variant}/`))
                .join();
            const key = `${here.block}.${here.variant} ${state.inputs} ${side === "after" ? opened : ""}`;
            if (key !== this.drawn) {
                this.drawing = drawingOf(here.sides[side], {
                    inputs: state.inputs,
                    open: (path) => side === "after" && state.open.has(openKey(here, path)),
                    titleOf: titlesOf(here, side),
                });
                this.drawn = key;
                render(this, here);
                const calls = here.sides[side].nodes.filter((n) => n.kind !== "input").length;
                this.title.replaceChildren(TITLES_OF_SIDES[side], h("span", times(calls, "node")));
                const place = `${here.block}.${here.variant} ${state.inputs}`;
                if (this.fitted !== place) {
                    this.target = null;
                    this.fit({ whole: false });
                }
                this.fitted = place;
            }
            mark(this, here);
        },
        fit({ whole, smooth }) {
            const { width, height } = this.size();
            if (!width || !this.drawing) return;
            const all = Math.min((width - 24) / this.drawing.width, (height - 24) / this.drawing.height, 1.1);
            const wide = Math.min((width - 24) / this.drawing.width, 1);
            const scale = whole || all >= READABLE ? all : Math.max(Math.min(wide, 0.9), LEAST);
            const x = (width - this.drawing.width * scale) / 2;
            const y = Math.max((height - this.drawing.height * scale) / 2, 12);
            const target = d3.zoomIdentity.translate(x, y).scale(scale);
            this.moved = false;
            (smooth ? svg.transition().duration(200) : svg).call(zoom.transform, target);
        },
        size() {
            return { width: svg.node().clientWidth, height: svg.node().clientHeight };
        },
        resized() {
            const { width } = this.size();
            if (!this.drawing || !width || width === this.width) return;
            this.width = width;
            if (!this.moved) this.fit({ whole: false });
            if (this.target) this.reveal(this.target);
        },
        // Pan as little as it takes to see some boxes, and zoom in where they would be too small to read.
        reveal(ids) {
            this.target = ids;
            const boxes = this.drawing.boxes.filter((box) => ids.includes(box.id));
            const { width, height } = this.size();
            if (!boxes.length || !width) return;
            const now = d3.zoomTransform(svg.node());
            const k = Math.max(now.k, LEAST);
            const middle = now.invert([width / 2, height / 2]);
            const start = { x: width / 2 - middle[0] * k, y: height / 2 - middle[1] * k };
            const along = (offset, size, low, high) => {
                const [from, to] = [offset + low * k, offset + high * k];
                if (to - from > size - 2 * REVEAL_MARGIN) return (size - (from + to)) / 2;
                return Math.max(0, REVEAL_MARGIN - from) + Math.min(0, size - REVEAL_MARGIN - to);
            };
            const dx = along(
                start.x,
                width,
                d3.min(boxes, (b) => b.x - b.width / 2),
                d3.max(boxes, (b) => b.x + b.width / 2),
            );
            const dy = along(
                start.y,
                height,
                d3.min(boxes, (b) => b.y - b.height / 2),
                d3.max(boxes, (b) => b.y + b.height / 2),
            );
            if (k === now.k && !dx && !dy) return;
            svg.transition()
                .duration(250)
                .call(zoom.transform, d3.zoomIdentity.translate(start.x + dx, start.y + dy).scale(k));
        },
    };
    return pane;
}
