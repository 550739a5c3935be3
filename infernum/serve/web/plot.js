// A plot of the last minutes: lines of one unit over time, with a cursor for the mouse and the keyboard.
"use strict";

const HEIGHT = 118;
const MARGIN = { top: 8, right: 10, bottom: 18, left: 50 };

function svg(tag, attributes = {}, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
}

// The least of 1, 2, 4, 6 and 8 times a power of ten that is not below a value: their halves are short numbers.
function roundUp(value) {
    const power = 10 ** Math.floor(Math.log10(value));
    return [1, 2, 4, 6, 8, 10].map((factor) => factor * power).find((top) => top >= value * (1 - 1e-9));
}

// series: {name, value(point)}, at most two, the first being drawn with an area; format(value): its text; least: the
// smallest value that the vertical scale ends with, most: the largest.
class Plot {
    constructor({ title, series, format, least, most = Infinity }) {
        Object.assign(this, { title, series, format, least, most });
        this.points = [];
        this.cursor = null; // the time that is pointed at
        this.drawing = svg("g");
        this.mark = svg("g", { class: "mark" });
        this.svg = svg("svg", { tabindex: 0, role: "slider", "aria-label": title }, this.drawing, this.mark);
        this.values = series.map(() => h("b", "–"));
        const legend = series.map(({ name }, i) =>
            h("span.series", h(`i.line${i}`), this.values[i], h("span", name)),
        );
        this.element = h("figure.plot", h("figcaption", h("h3", title), h("div.legend", legend)), this.svg);
        this.svg.addEventListener("pointermove", (event) => this.pointAt(event));
        for (const end of ["pointerleave", "blur"]) this.svg.addEventListener(end, () => this.point(null));
        this.svg.addEventListener("keydown", (event) => this.step(event));
    }

    // Draw the points from a time on, in seconds, up to now.
    draw(points, from, now) {
        this.width = this.svg.clientWidth || 300;
        this.points = points.filter((point) => point.at >= from);
        const spans = { x: [from, now], y: [0, this.top()] };
        this.x = (at) => MARGIN.left + ((at - from) / (now - from)) * (this.width - MARGIN.left - MARGIN.right);
        this.y = (value) => HEIGHT - MARGIN.bottom - (value / spans.y[1]) * (HEIGHT - MARGIN.top - MARGIN.bottom);
        this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
        this.drawing.replaceChildren(...this.axes(spans), ...this.series.flatMap((_, i) => this.line(i)));
        const last = points.at(-1);
        this.series.forEach(({ value }, i) => (this.values[i].textContent = this.textOf(last && value(last))));
        this.drawMark();
    }

    top() {
        const values = this.points.flatMap((point) => this.series.map(({ value }) => value(point) ?? 0));
        return Math.min(this.most, roundUp(Math.max(this.least, ...values)));
    }

    textOf(value) {
        return value === null || value === undefined ? "–" : this.format(value);
    }

    axes({ x: [from, now], y: [, top] }) {
        const right = this.width - MARGIN.right;
        const rows = [0, top / 2, top].map((value) =>
            svg(
                "g",
                { class: "axis", transform: `translate(0,${this.y(value)})` },
                svg("line", { x1: MARGIN.left, x2: right }),
                svg("text", { x: MARGIN.left - 7, dy: "0.32em", "text-anchor": "end" }, this.format(value)),
            ),
        );
        const label = (x, anchor, text) =>
            svg("text", { class: "axis-title", x, y: HEIGHT - 4, "text-anchor": anchor }, text);
        return [
            ...rows,
            label(MARGIN.left, "start", `${duration(now - from)} ago`),
            label(right, "end", "now"),
        ];
    }

    // The line of a series, broken where it has no value, over an area if it is the first.
    line(index) {
        const { value } = this.series[index];
        const parts = [[]];
        for (const point of this.points) {
            const y = value(point);
            if (y === null || y === undefined) parts.push([]);
            else parts.at(-1).push([this.x(point.at).toFixed(1), this.y(Math.min(y, this.top())).toFixed(1)]);
        }
        const drawn = parts.filter((part) => part.length);
        const lines = drawn.map((part) => `M${part.map((place) => place.join(",")).join("L")}h0`);
        const path = svg("path", { class: `line${index}`, d: lines.join("") });
        if (index > 0) return [path];
        const floor = this.y(0);
        const areas = drawn.map((part, i) => `${lines[i].slice(0, -2)}V${floor}H${part[0][0]}Z`);
        return [svg("path", { class: "area", d: areas.join("") }), path];
    }

    pointAt(event) {
        const at = (event.clientX - this.svg.getBoundingClientRect().left - this.x(0)) / (this.x(1) - this.x(0));
        this.point(this.nearest(at));
    }

    nearest(at) {
        const known = this.points.filter((point) => !point.isHole);
        return known.reduce((best, p) => (Math.abs(p.at - at) < Math.abs(best.at - at) ? p : best), known[0]);
    }

    // Arrow keys go from point to point.
    step(event) {
        const known = this.points.filter((point) => !point.isHole);
        const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -Infinity, End: Infinity };
        if (event.key === "Escape") this.point(null);
        if (!(event.key in steps) || !known.length) return;
        event.preventDefault();
        const place = this.cursor === null ? known.length : known.indexOf(this.nearest(this.cursor));
        this.point(known[Math.max(0, Math.min(known.length - 1, place + steps[event.key]))]);
    }

    point(point) {
        this.cursor = point?.at ?? null;
        if (!point) tip.hide();
        this.drawMark();
    }

    drawMark() {
        const point = this.cursor === null || !this.points.length ? null : this.nearest(this.cursor);
        const ago = Math.round((point?.at ?? this.points.at(-1)?.at ?? 0) - (this.points.at(-1)?.at ?? 0));
        const spoken = this.series.map(({ name, value }) => {
            const shown = point ?? this.points.at(-1);
            return `${name} ${this.textOf(shown && value(shown))}`;
        });
        const time = ago ? `${duration(-ago)} ago` : "now";
        this.svg.setAttribute("aria-valuemin", Math.round((this.points[0]?.at ?? 0) - (this.points.at(-1)?.at ?? 0)));
        this.svg.setAttribute("aria-valuemax", 0);
        this.svg.setAttribute("aria-valuenow", ago);
        this.svg.setAttribute("aria-valuetext", `${time}: ${spoken.join(", ")}`);
        this.mark.replaceChildren();
        if (!point) return;
        const x = this.x(point.at);
        const values = this.series.map(({ value }) => value(point));
        this.mark.append(svg("line", { x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }));
        values.forEach((value, i) => {
            if (value !== null && value !== undefined)
                this.mark.append(svg("circle", { class: `line${i}`, cx: x, cy: this.y(Math.min(value, this.top())), r: 3.5 }));
        });
        const box = this.svg.getBoundingClientRect();
        tip.show({ clientX: box.left + x, clientY: box.top + 20 }, h("div.note", time), ...spoken.map((line) => h("div", line)));
    }
}
