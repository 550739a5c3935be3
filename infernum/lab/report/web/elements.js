// Making elements, and the tooltip that all drawings share.
"use strict";

// An element: h("p.note", {title: "…", onclick: f}, "text", child, [children], null).
function h(what, ...rest) {
    const [tag, ...classes] = what.split(".");
    const element = document.createElement(tag || "div");
    if (classes.length) element.className = classes.join(" ");
    const [first] = rest;
    const isAttributes =
        first !== null && typeof first === "object" && !Array.isArray(first) && !(first instanceof Node);
    if (isAttributes) {
        for (const [name, value] of Object.entries(rest.shift())) {
            if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
            else if (value !== null && value !== undefined && value !== false)
                element.setAttribute(name, value);
        }
    }
    element.append(
        ...rest.flat(3).filter((child) => child !== null && child !== undefined && child !== false),
    );
    return element;
}

// Rows of names and values; rows without a value are left out.
function factTable(rows) {
    const filled = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
    return h(
        "table.facts",
        filled.map(([name, ...values]) => h("tr", h("th", name), h("td", ...values))),
    );
}

// A table with a heading; a column is {title, value(row), number, sort(row)}.
function dataTable(columns, rows, { onclick, classOf } = {}) {
    const head = h(
        "tr",
        columns.map((c) => h(c.number ? "th.number" : "th", { title: c.why }, c.title)),
    );
    const body = rows.map((row) =>
        h(
            "tr",
            {
                class: [onclick ? "link" : "", classOf?.(row) ?? ""].join(" ").trim() || null,
                tabindex: onclick ? 0 : null,
                onclick: () => onclick?.(row),
                onkeydown: (event) => event.key === "Enter" && onclick?.(row),
            },
            columns.map((c) => h(c.number ? "td.number" : "td", c.value(row))),
        ),
    );
    return h("div.table", h("table.data", h("thead", head), h("tbody", body)));
}

// Buttons of which one is pressed.
function segments(container, choices, chosen, choose) {
    container.replaceChildren(
        ...choices.map(([value, text, title]) =>
            h(
                "button",
                {
                    type: "button",
                    title,
                    "aria-pressed": String(value === chosen),
                    onclick: () => choose(value),
                },
                text,
            ),
        ),
    );
}

const tip = {
    element: document.getElementById("tip"),
    show(event, ...content) {
        this.element.replaceChildren(...content);
        this.element.hidden = false;
        const { clientWidth: width, clientHeight: height } = this.element;
        const left = Math.min(event.clientX + 14, innerWidth - width - 8);
        const below = event.clientY + 16 + height < innerHeight;
        this.element.style.left = `${Math.max(8, left)}px`;
        this.element.style.top = `${below ? event.clientY + 16 : Math.max(8, event.clientY - height - 10)}px`;
    },
    hide() {
        this.element.hidden = true;
    },
};

// Widths of text, measured once for each text and font; FONTS are those that report.css gives to drawings.
const FONTS = { title: "600 12.5px", view: "500 12.5px", line: "11px", pill: "500 11px" };
const ruler = document.createElement("canvas").getContext("2d");
const widths = new Map();
const family = getComputedStyle(document.body).fontFamily;

function textWidth(text, font) {
    const key = `${font} ${text}`;
    if (!widths.has(key)) {
        ruler.font = `${FONTS[font]} ${family}`;
        widths.set(key, ruler.measureText(text).width);
    }
    return widths.get(key);
}

// As much of a text as fits.
function fitText(text, font, width) {
    if (textWidth(text, font) <= width) return text;
    let end = text.length;
    while (end > 1 && textWidth(`${text.slice(0, end)}…`, font) > width) end -= 1;
    return `${text.slice(0, end)}…`;
}

// A colour for a kernel's hue: a fill that text can stand on, or a line.
const fillOf = (hue) => (hue === undefined ? "var(--free)" : `hsl(${hue} var(--fill))`);
const lineOf = (hue) => (hue === undefined ? "var(--free-line)" : `hsl(${hue} var(--line))`);

// Lines across a drawing at values of its vertical scale, each labelled at its left.
function rowsOf(svg, ticks, y, margin, width, label) {
    const rows = svg
        .append("g")
        .attr("class", "axis")
        .selectAll("g")
        .data(ticks)
        .join("g")
        .attr("transform", (tick) => `translate(0,${y(tick)})`);
    rows.append("line")
        .attr("x1", margin.left)
        .attr("x2", width - margin.right);
    rows.append("text")
        .attr("x", margin.left - 8)
        .attr("dy", "0.32em")
        .attr("text-anchor", "end")
        .text(label);
}
