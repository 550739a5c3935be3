// Tables, and what drawings share: widths of text, colours and axes.
"use strict";

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
