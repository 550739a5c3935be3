// What is known of one node: its signature, where it came from and went, the kernel that computes it, and the CUDA.
"use strict";

const details = document.getElementById("details");

function drawDetails() {
    details.hidden = !state.node || state.tab === "overview";
    if (details.hidden) return;
    const here = current();
    const { side, path } = state.node;
    const graph = here.sides[side];
    const node = nodeAt(graph, path);
    const outer = path.split("/")[0];
    const kernels = here.kernelsAt(side, outer);
    const key = `${here.block}.${here.variant} ${side}:${path}`;
    if (details.dataset.key === key) return;
    details.dataset.key = key;
    details.replaceChildren(
        h("div.grip", { title: "Drag to resize", onpointerdown: resizeDetails }),
        h(
            "div.content",
            h(
                "div.about",
                h(
                    "header",
                    h(
                        "div",
                        h("h2", node.body ? opsOf(node).join(" → ") : node.op),
                        h(
                            "p.sub",
                            h("code", `%${path.replace("/", " / %")}`),
                            ` of ${here.block}.${here.variant}, ${side} fusion`,
                        ),
                    ),
                    h(
                        "button.close",
                        {
                            type: "button",
                            title: "Close (Esc)",
                            "aria-label": "Close",
                            onclick: () => show({ node: null }),
                        },
                        "×",
                    ),
                ),
                destiny(here, side, outer, node, kernels),
                signature(here, side, path, graph, node),
                kernels.map((i) => kernelCard(here, here.kernels[i], side === "after" && path === outer)),
            ),
            sourceOf(here, kernels),
        ),
    );
}

function link(text, onclick, title) {
    return h("button.inline", { type: "button", title, onclick }, text);
}

// Where a node went, or what it was made from.
function destiny(here, side, id, node, kernels) {
    if (node.kind === "input") return h("p", inputText(node));
    const swatch = h("i.swatch", { style: `background:${lineOf(here.hueAt(side, id))}` });
    const other = counterparts(here, side, id);
    if (side === "before") {
        if (!kernels.length) {
            const seen = other.length
                ? [
                      " It stays in the graph as ",
                      link(`%${other[0]}`, () => showNode("after", other[0], { view: "both" })),
                      ".",
                  ]
                : null;
            return h(
                "p",
                swatch,
                node.kind === "load"
                    ? "Costs nothing in a step: done once, when weights are loaded."
                    : "Costs nothing: another look at the same memory.",
                seen,
            );
        }
        const names = kernels.map((i) => here.kernels[i].name).join(", ");
        return h(
            "p",
            swatch,
            "Became part of ",
            link(
                names,
                () => showNode("after", other[0], { view: "both" }),
                "Show it in the graph after fusion",
            ),
            ".",
        );
    }
    if (!kernels.length) return h("p", swatch, "No kernel: another look at the same memory.");
    const isInside = node !== here.sides.after.byId.get(id);
    const from = (here.cameFrom.get(id) ?? []).filter((name) => here.became.get(name).kernels.length);
    return h(
        "p",
        swatch,
        isInside ? ["Part of ", link(`%${id}`, () => showNode("after", id)), ", which does "] : "Does ",
        from.length > 1 ? `the work of ${from.length} traced nodes: ` : "the work of ",
        from.flatMap((name, i) => [
            i ? ", " : "",
            link(`%${name}`, () => showNode("before", name, { view: "both" })),
        ]),
        ".",
    );
}

function inputText(node) {
    const roles = {
        stream: "flows in from the block before",
        batch: "is a fact of the step",
        state: "outlives the step: the KV cache",
        weight: "is a weight",
    };
    return `${node.id} ${roles[node.op] ?? node.op}${node.parts ? `, from ${node.parts.join(" and ")}` : ""}.`;
}

function signature(here, side, path, graph, node) {
    const [outer, inner] = path.split("/");
    const inside = inner === undefined ? graph : graph.byId.get(outer).body;
    const prefix = inner === undefined ? "" : `${outer}/`;
    const operands = (node.operands ?? []).map(([from, index, param]) =>
        h(
            "tr",
            h(
                "td",
                param === from ? null : `${param} = `,
                link(`%${from}${index ? `.${index}` : ""}`, () => showNode(side, prefix + from)),
            ),
            h("td.type", inside.byId.get(from)?.types[index] ?? ""),
        ),
    );
    const results = node.types.map((type, i) =>
        h(
            "tr",
            h("td", node.kind === "input" ? "type" : node.types.length > 1 ? `result ${i}` : "result"),
            h("td.type", type),
        ),
    );
    return [
        h("table.signature", operands, results),
        factTable(
            [
                ...Object.entries(node.attrs ?? {})
                    .filter(([, value]) => value !== "''")
                    .map(([name, value]) => [name, h("code", value)]),
                ["Python", (node.where ?? []).map((line) => h("code.where", line))],
            ].filter(([, value]) => !Array.isArray(value) || value.length),
        ),
    ];
}

function resizeDetails(event) {
    event.preventDefault();
    const [from, width] = [event.clientX, details.offsetWidth];
    const move = (now) => {
        const dragged = width + from - now.clientX;
        details.style.width = `${Math.max(300, Math.min(dragged, innerWidth - 260))}px`;
    };
    const stop = () => {
        removeEventListener("pointermove", move);
        removeEventListener("pointerup", stop);
    };
    addEventListener("pointermove", move);
    addEventListener("pointerup", stop);
}
