// What is known of one kernel: its cost before and after fusion, its launch, and why it is this one.
"use strict";

function kernelCard(here, kernel, isWhole) {
    const { occupancy, measured, before, product } = kernel;
    const { bytes, flops, floor_us } = measured ?? kernel;
    const machine = measured ? report.roof.gpu : report.roof.stands_for;
    const tile = (value, name, title) => h("div.tile", { title }, h("b", value), h("span", name));
    const edited = here.edited.includes(kernel.name);
    return h(
        "section.kernel",
        h(
            "h3",
            kernel.name,
            h("span", product ? "library product" : `${kernel.template}.cu.j2`),
            edited ? h("em", "edited by hand") : null,
        ),
        h(
            "div.tiles",
            measured
                ? tile(
                      microseconds(measured.us),
                      `measured, ${percent(measured.fraction)} of bound`,
                      "In place, per launch",
                  )
                : null,
            tile(
                microseconds(floor_us),
                "floor",
                `The least time on ${machine}, at ${times(kernel.tokens, "token")}`,
            ),
            tile(si(bytes, "B"), "memory", `${kernel.formulas.bytes} bytes`),
            tile(si(flops, "FLOP"), "arithmetic", `${kernel.formulas.FLOPs} FLOPs`),
            product ? null : tile(kernel.registers || "–", "registers", "Of each thread"),
            occupancy
                ? tile(
                      percent(occupancy.fraction),
                      "occupancy",
                      `${occupancy.warps} warps in ${times(occupancy.blocks_per_sm, "block")} on each multiprocessor; limited by ${occupancy.limit}`,
                  )
                : null,
        ),
        factTable([
            ["Ops", isWhole ? null : kernel.ops.join(" → ")],
            ["Rules", ruleChips(here, kernel)],
            [
                "Before",
                `${times(before.kernels, "kernel")}, ${si(before.bytes, "B")}, ${si(before.flops, "FLOP")}, at least ${microseconds(before.floor_us)}${saving(before, kernel)}`,
            ],
            ["Python", isWhole ? null : kernel.where.map((line) => h("code.where", line))],
            ["Launch", launchText(kernel)],
            [
                "Occupancy",
                occupancy &&
                    `${times(occupancy.warps, "warp")} in ${times(occupancy.blocks_per_sm, "block")} on each multiprocessor; limited by ${occupancy.limit}`,
            ],
            ["Spilled", kernel.spill_bytes ? `${kernel.spill_bytes} B in each thread` : null],
            [
                "Alone",
                measured?.alone_us ? `${microseconds(measured.alone_us)} when launched by itself` : null,
            ],
            [
                "Would gain",
                measured && measured.gain_us > 0
                    ? `${microseconds(measured.gain_us)} per step at its bound, over ${times(measured.layers, "layer")}`
                    : null,
            ],
            [
                "Passed over",
                kernel.passed_over.length
                    ? h(
                          "ul",
                          kernel.passed_over.map((why) => h("li", why)),
                      )
                    : null,
            ],
        ]),
    );
}

// The rules that made a kernel's node, fusions and rewrites alike.
function ruleChips(here, kernel) {
    const fired = here.rules.fired
        .filter((firing) => firing.after.includes(kernel.node))
        .map((firing) => firing.rule);
    const names = [...new Set([...fired, ...kernel.rules])];
    if (!names.length) return "none: as traced";
    return names.map((rule) =>
        h("button.chip", { type: "button", title: report.rules[rule], onclick: () => openRule(rule) }, rule),
    );
}

function saving(before, kernel) {
    const saved = before.bytes - kernel.bytes;
    return before.kernels > 1 && saved > 0 ? `; ${si(saved, "B")} less to move` : "";
}

function launchText(kernel) {
    if (kernel.product)
        return `cuBLASLt, no CUDA of ours: ${kernel.product.m} × ${kernel.product.n} × ${kernel.product.k}, ${kernel.product.dtype}`;
    const grid = kernel.grid.filter((n, i) => i === 0 || n !== "1").join(" × ");
    const threads = kernel.block.filter((n) => n > 1).join(" × ") || "1";
    const shared = kernel.shared_bytes + kernel.static_shared_bytes;
    return [
        h("code", grid),
        ` blocks of ${threads} threads`,
        kernel.cluster === "1" ? "" : [", in clusters of ", h("code", kernel.cluster)],
        shared ? `, ${binaryBytes(shared)} shared memory` : "",
    ];
}
