// The roofline: what memory and arithmetic allow at each intensity, and where the measured kernels are.
"use strict";

const rooflinePage = document.getElementById("roofline");
const MOST_LABELS = 12;

function drawRoofline() {
    const kernels = rooflineKernels(state.variant);
    const measured = kernels.filter((k) => k.measured);
    rooflinePage.replaceChildren(
        measured.length
            ? benchLine(measured)
            : h(
                  "p.note.callout",
                  "Nothing was measured for this variant, so each kernel is only marked at its intensity. ",
                  h("code", "infernum bench kernels BUNDLE --json > kernels.json"),
                  " measures, and ",
                  h("code", "infernum report BUNDLE --bench kernels.json"),
                  " shows it here.",
              ),
        h("div.chart", { id: "roofline-chart" }),
        rooflineTable(kernels, measured.length > 0),
    );
    drawRoof(kernels, measured.length > 0);
}

function rooflineKernels(variant) {
    const wasMeasured = !report.bench?.variant || report.bench.variant === variant;
    return blockNames
        .filter((block) => serves(block, variant))
        .flatMap((block) =>
            model.of(block, variant).kernels.map((kernel, index) => {
                const measured = wasMeasured ? kernel.measured : undefined; // a sampler's belongs to one variant's step
                const { bytes, flops, floor_us, us } = { ...kernel, ...measured };
                const performance = us > 0 ? flops / (us * 1e-6) : null;
                return {
                    ...kernel,
                    measured,
                    block,
                    index,
                    bytes,
                    flops,
                    floor_us,
                    intensity: bytes ? flops / bytes : 0,
                    performance,
                };
            }),
        );
}

function benchLine(measured) {
    const { ms_per_step: step, unaccounted_us: rest, tokens, context } = report.bench;
    return h(
        "div.headline",
        step ? h("div", h("b", `${digits(step)} ms`), " per step") : null,
        h("div", h("b", microseconds(sum(measured.map((k) => k.measured.gain_us)))), " above the bound"),
        rest !== null && rest !== undefined ? h("div", h("b", microseconds(rest)), " unaccounted for") : null,
        h(
            "span.note",
            [
                report.roof.gpu,
                tokens ? times(tokens, "token") : null,
                context ? `context ${context.toLocaleString("en")}` : null,
            ]
                .filter(Boolean)
                .join(", "),
        ),
    );
}

function drawRoof(kernels, hasTimes) {
    const { bytes_per_second: bandwidth, flops_per_second: peak } = report.roof;
    const box = document.getElementById("roofline-chart");
    const width = Math.max(box.clientWidth, 320);
    const height = Math.max(300, Math.min(innerHeight - 330, 460));
    const margin = { top: 16, right: 24, bottom: 44, left: 84 };
    const shown = kernels.filter((k) => k.intensity > 0);
    const ridge = peak / bandwidth;
    const low = Math.min(0.1, d3.min(shown, (k) => k.intensity / 2) ?? 0.1);
    const high = Math.max(ridge * 4, (d3.max(shown, (k) => k.intensity) ?? 1) * 2);
    const floor = Math.min(
        low * bandwidth,
        d3.min(shown, (k) => (k.performance ?? Infinity) / 2) ?? Infinity,
    );
    const x = d3.scaleLog([low, high], [margin.left, width - margin.right]);
    const y = d3.scaleLog([floor, peak * 2.5], [height - margin.bottom, margin.top]);
    const svg = d3
        .select(box)
        .append("svg")
        .attr("width", width)
        .attr("height", height)
        .attr("role", "img")
        .attr("aria-label", "Roofline");

    const decades = (scale) =>
        scale.ticks(6).filter((tick) => Math.abs(Math.log10(tick) - Math.round(Math.log10(tick))) < 1e-9);
    rowsOf(svg, decades(y), y, margin, width, (tick) => si(tick, "FLOP/s"));
    const columns = svg
        .append("g")
        .attr("class", "axis")
        .selectAll("g")
        .data(decades(x))
        .join("g")
        .attr("transform", (tick) => `translate(${x(tick)},0)`);
    columns
        .append("line")
        .attr("y1", margin.top)
        .attr("y2", height - margin.bottom);
    columns
        .append("text")
        .attr("y", height - margin.bottom + 16)
        .attr("text-anchor", "middle")
        .text((tick) => digits(tick));
    svg.append("text")
        .attr("class", "axis-title")
        .attr("x", (margin.left + width - margin.right) / 2)
        .attr("y", height - 8)
        .attr("text-anchor", "middle")
        .text("FLOP per byte moved");

    const roof = [
        [low, low * bandwidth],
        [ridge, peak],
        [high, peak],
    ];
    svg.append("path")
        .attr("class", "roof")
        .attr(
            "d",
            d3.line(
                ([a]) => x(a),
                ([, b]) => y(b),
            )(roof),
        );
    const slope = (Math.atan2(y(ridge * bandwidth) - y(low * bandwidth), x(ridge) - x(low)) * 180) / Math.PI;
    const middle = Math.sqrt(Math.max(low, floor / bandwidth) * ridge);
    const memoryText = `${si(bandwidth, "B/s")}, ${report.roof.bytes_measured ? "measured" : report.roof.stands_for}`;
    svg.append("text")
        .attr("class", "roof-text")
        .attr("transform", `translate(${x(middle)},${y(middle * bandwidth) - 8}) rotate(${slope})`)
        .attr("text-anchor", "middle")
        .text(memoryText);
    svg.append("text")
        .attr("class", "roof-text")
        .attr("x", x(high) - 6)
        .attr("y", y(peak) - 8)
        .attr("text-anchor", "end")
        .text(`${si(peak, "FLOP/s")}, ${report.roof.flops_measured ? "measured" : report.roof.stands_for}`);

    const dots = svg
        .append("g")
        .selectAll("g")
        .data(shown.filter((k) => !hasTimes || k.performance))
        .join("g")
        .attr("class", (k) => (k.performance ? "dot" : "dot unmeasured"))
        .classed("chosen", isChosenKernel)
        .attr("tabindex", 0)
        .attr("role", "button")
        .attr("aria-label", (k) => k.name)
        .style("--hue-line", (k) => lineOf(model.of(k.block, state.variant).hueAt("after", k.node)))
        .attr(
            "transform",
            (k) =>
                `translate(${x(k.intensity)},${k.performance ? y(k.performance) : height - margin.bottom})`,
        )
        .on("mousemove", (event, k) => tip.show(event, ...dotText(k)))
        .on("mouseleave", () => tip.hide())
        .on("click", (_, k) => openDot(k))
        .on("keydown", (event, k) => event.key === "Enter" && openDot(k));
    dots.filter((k) => k.performance)
        .append("circle")
        .attr("r", 6);
    dots.filter((k) => !k.performance)
        .append("path")
        .attr("d", "M0,0V-16");
    if (hasTimes) labelDots(svg, dots, x, y, width - margin.right);
}

// Names beside the dots that have most to gain, where they do not hide one another.
function labelDots(svg, dots, x, y, right) {
    const occupied = dots.data().map((k) => ({
        left: x(k.intensity) - 7,
        right: x(k.intensity) + 7,
        top: y(k.performance) - 7,
        bottom: y(k.performance) + 7,
    }));
    const ranked = d3.sort(dots.data(), (k) => -k.measured.gain_us).slice(0, MOST_LABELS);
    for (const k of ranked) {
        const wide = textWidth(k.name, "line");
        const [cx, cy] = [x(k.intensity), y(k.performance)];
        const places = [
            [cx + 11, cy],
            [cx - 11 - wide, cy],
            [cx - wide / 2, cy - 15],
            [cx - wide / 2, cy + 16],
            [cx + 9, cy - 14],
            [cx + 9, cy + 14],
        ];
        const free = places
            .map(([left, middle]) => ({ left, right: left + wide, top: middle - 6, bottom: middle + 6 }))
            .find(
                (box) =>
                    box.right < right &&
                    box.left > 84 &&
                    !occupied.some(
                        (t) =>
                            t.left < box.right &&
                            box.left < t.right &&
                            t.top < box.bottom &&
                            box.top < t.bottom,
                    ),
            );
        if (!free) continue;
        occupied.push(free);
        svg.append("text")
            .attr("class", "dot-text")
            .attr("x", free.left)
            .attr("y", free.top + 10)
            .text(k.name);
    }
}

function dotText(k) {
    const speed = k.measured
        ? [
              h(
                  "div",
                  `${microseconds(k.measured.us)} measured, at least ${microseconds(k.floor_us)}: ${percent(k.measured.fraction)} of the bound`,
              ),
              h("div", `${si(k.performance, "FLOP/s")}, ${si(k.bytes / (k.measured.us * 1e-6), "B/s")}`),
          ]
        : [h("div", `at least ${microseconds(k.floor_us)}`)];
    return [
        h("b", k.name),
        h("div", `${k.block}, ${k.ops.join(" → ")}`),
        h("div", `${si(k.bytes, "B")}, ${si(k.flops, "FLOP")}: ${digits(k.intensity)} FLOP per byte`),
        ...speed,
    ];
}

const openDot = (k) => {
    tip.hide();
    showKernel(k.block, state.variant, k.index);
};
const isChosenKernel = (k) =>
    k.block === state.block && state.node?.side === "after" && state.node.path === k.node;

function rooflineTable(kernels, hasTimes) {
    const bound = (k) =>
        k.flops / report.roof.flops_per_second > k.bytes / report.roof.bytes_per_second
            ? "arithmetic"
            : "memory";
    const columns = [
        { title: "Kernel", value: (k) => k.name },
        {
            title: "Block",
            value: (k) =>
                `${k.block}${(report.bundle.layers[k.block] ?? 1) > 1 ? ` × ${report.bundle.layers[k.block]}` : ""}`,
        },
        { title: "Bytes", number: true, value: (k) => si(k.bytes, "B") },
        { title: "FLOPs", number: true, value: (k) => si(k.flops, "FLOP") },
        { title: "FLOP/B", number: true, value: (k) => (k.flops ? digits(k.intensity) : "0") },
        { title: "Bound by", value: bound },
        { title: "Floor", number: true, value: (k) => microseconds(k.floor_us) },
        ...(hasTimes
            ? [
                  {
                      title: "Measured",
                      number: true,
                      value: (k) => (k.measured ? microseconds(k.measured.us) : "–"),
                  },
                  {
                      title: "Of bound",
                      number: true,
                      value: (k) => (k.measured ? percent(k.measured.fraction) : "–"),
                  },
                  {
                      title: "Gain / step",
                      number: true,
                      why: "What a step would gain if the kernel ran at its bound",
                      value: (k) => (k.measured ? microseconds(k.measured.gain_us) : "–"),
                  },
              ]
            : []),
    ];
    const key = hasTimes
        ? (k) => -(k.measured?.gain_us ?? -1)
        : (k) => -k.floor_us * (report.bundle.layers[k.block] ?? 1);
    return dataTable(columns, d3.sort(kernels, key), {
        onclick: openDot,
        classOf: (k) => (isChosenKernel(k) ? "chosen" : ""),
    });
}
