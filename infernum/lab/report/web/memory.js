// The memory plan: every buffer of the arena, from the first step that names it to the last.
"use strict";

const memoryPage = document.getElementById("memory");
const memory = { chosen: null };

function drawMemory() {
    const here = current();
    if (!here.buffers.length) {
        memoryPage.replaceChildren(
            h(
                "p.note",
                `${here.block}.${here.variant} keeps nothing in the arena: it reads inputs and writes results.`,
            ),
        );
        return;
    }
    const total = sum(here.buffers.map((b) => b.bytes));
    const most = d3.max(liveBytes(here));
    memoryPage.replaceChildren(
        h(
            "div.headline",
            h("div", h("b", binaryBytes(here.arena_bytes)), " arena"),
            h("div", h("b", binaryBytes(most)), " most alive at once"),
            h(
                "div",
                h("b", binaryBytes(total)),
                ` in ${times(here.buffers.length, "buffer")} without sharing`,
            ),
            h(
                "span.note",
                `at ${times(specOf(here.variant).max_tokens, "token")}, the most this variant serves`,
            ),
        ),
        h("div.chart", { id: "memory-chart" }),
        h("div", { id: "memory-facts" }),
    );
    drawPlan(here);
    drawBuffer(here);
}

const first = (buffer) => buffer.steps[0] ?? 0;
const last = (buffer) => buffer.steps.at(-1) ?? 0;

function liveBytes(here) {
    return here.kernels.map((_, i) =>
        sum(here.buffers.filter((b) => first(b) <= i && i <= last(b)).map((b) => b.bytes)),
    );
}

function drawPlan(here) {
    const box = document.getElementById("memory-chart");
    const width = Math.max(box.clientWidth, 320);
    const names = here.kernels.map((kernel) => kernel.name);
    const angled = (width - 108) / names.length >= 18; // room for names below the steps
    const margin = { top: 16, right: 24, bottom: angled ? 118 : 40, left: 84 };
    const height = Math.max(360, Math.min(innerHeight - 250, 620));
    const x = d3
        .scaleBand(
            names.map((_, i) => i),
            [margin.left, width - margin.right],
        )
        .paddingInner(0.06);
    const y = d3.scaleLinear([0, here.arena_bytes], [height - margin.bottom, margin.top]);
    const svg = d3
        .select(box)
        .append("svg")
        .attr("width", width)
        .attr("height", height)
        .attr("role", "img")
        .attr("aria-label", "Memory plan over time");

    const unit = tickUnit(here.arena_bytes);
    const ticks = d3.ticks(0, here.arena_bytes / unit.size, 6).map((tick) => tick * unit.size);
    const label = (tick) => (tick ? `${digits(tick / unit.size)} ${unit.name}` : "0");
    rowsOf(svg, ticks, y, margin, width, label);
    svg.append("text")
        .attr("class", "axis-title")
        .attr("transform", `translate(14,${(height - margin.bottom + margin.top) / 2}) rotate(-90)`)
        .attr("text-anchor", "middle")
        .text("offset in the arena");

    const every = angled ? 1 : Math.ceil((names.length * 34) / (width - 108));
    const labels = svg
        .append("g")
        .attr("class", "axis")
        .selectAll("g")
        .data(names.map((_, i) => i).filter((i) => i % every === 0))
        .join("g")
        .attr("transform", (i) => `translate(${x(i) + x.bandwidth() / 2},${height - margin.bottom + 14})`);
    labels
        .append("text")
        .attr("text-anchor", angled ? "end" : "middle")
        .attr("transform", angled ? "rotate(-32)" : null)
        .text((i) => (angled ? `${i}  ${fitText(names[i], "line", 120)}` : i));
    svg.append("g")
        .selectAll("rect")
        .data(names)
        .join("rect")
        .attr("class", "step")
        .attr("x", (_, i) => x(i))
        .attr("y", margin.top)
        .attr("width", x.bandwidth())
        .attr("height", height - margin.bottom - margin.top);

    const bars = svg
        .append("g")
        .selectAll("g")
        .data(here.buffers)
        .join("g")
        .attr("class", "buffer")
        .attr("tabindex", 0)
        .attr("role", "button")
        .attr("aria-label", (b) => b.name)
        .classed("chosen", (b) => b.name === memory.chosen)
        .style("--hue-fill", (b) => fillOf(hueOfBuffer(here, b)))
        .style("--hue-line", (b) => lineOf(hueOfBuffer(here, b)))
        .on("mousemove", (event, b) => tip.show(event, ...bufferText(here, b)))
        .on("mouseleave", () => tip.hide())
        .on("click", (_, b) => chooseBuffer(here, b))
        .on("keydown", (event, b) => event.key === "Enter" && chooseBuffer(here, b));
    const span = (b) => x(last(b)) + x.bandwidth() - x(first(b));
    const tall = (b) => Math.max(y(b.offset) - y(b.offset + b.bytes), 3);
    bars.append("rect")
        .attr("x", (b) => x(first(b)))
        .attr("width", span)
        .attr("y", (b) => y(b.offset) - tall(b))
        .attr("height", tall)
        .attr("rx", 2);
    bars.filter((b) => tall(b) >= 11 && span(b) > 40)
        .append("text")
        .attr("x", (b) => x(first(b)) + 7)
        .attr("y", (b) => y(b.offset) - tall(b) / 2)
        .attr("dy", "0.34em")
        .text((b) => fitText(b.name, "line", span(b) - 12));
}

function tickUnit(bytes) {
    return [
        ["GiB", 2 ** 30],
        ["MiB", 2 ** 20],
        ["KiB", 2 ** 10],
        ["B", 1],
    ]
        .map(([name, size]) => ({ name, size }))
        .find(({ size }) => bytes >= 2 * size || size === 1);
}

// A buffer has the colour of the kernel that writes it first.
function hueOfBuffer(here, buffer) {
    return buffer.steps.length ? here.hueAt("after", here.kernels[first(buffer)].node) : undefined;
}

function bufferText(here, b) {
    const steps = first(b) === last(b) ? `step ${first(b)}` : `steps ${first(b)} to ${last(b)}`;
    return [
        h("b", b.name),
        h("div", b.type),
        h("div", `${binaryBytes(b.bytes)} at ${b.offset.toLocaleString("en")}`),
        h("div", `alive in ${steps}`),
    ];
}

function chooseBuffer(here, buffer) {
    memory.chosen = memory.chosen === buffer.name ? null : buffer.name;
    d3.selectAll("#memory-chart .buffer").classed("chosen", (b) => b.name === memory.chosen);
    drawBuffer(here);
}

function drawBuffer(here) {
    const buffer = here.buffers.find((b) => b.name === memory.chosen);
    const box = document.getElementById("memory-facts");
    if (!buffer) {
        box.replaceChildren(
            h(
                "p.note",
                "Steps run from left to right. Two buffers that are never alive together may lie at the same offset. Click one for its steps.",
            ),
        );
        return;
    }
    const steps = buffer.steps.flatMap((i) => [
        link(`${i} ${here.kernels[i].name}`, () => showKernel(here.block, here.variant, i)),
        " ",
    ]);
    box.replaceChildren(
        h("h3", buffer.name),
        factTable([
            ["Type", h("code", buffer.type)],
            ["Bytes", `${binaryBytes(buffer.bytes)} (${buffer.bytes.toLocaleString("en")})`],
            ["Offset", buffer.offset.toLocaleString("en")],
            ["Steps", steps],
        ]),
    );
}
