// The page: tabs, block and variant, keys; it redraws what can be seen when the state changes.
"use strict";

const TITLES = {
    overview: "Overview",
    graph: "Graph",
    rules: "Rules",
    memory: "Memory",
    roofline: "Roofline",
};
const DRAW = {
    overview: drawOverview,
    graph: drawGraph,
    rules: () => {
        drawRules();
        drawGraph();
    },
    memory: drawMemory,
    roofline: drawRoofline,
};

function drawBar() {
    const tabs = document.getElementById("tabs");
    tabs.replaceChildren(
        ...TABS.map((tab) =>
            h(
                "button",
                {
                    type: "button",
                    role: "tab",
                    "data-tab": tab,
                    "aria-selected": String(tab === state.tab),
                    onclick: () => show({ tab }),
                },
                TITLES[tab],
            ),
        ),
    );
    const blocks = document.getElementById("block");
    blocks.replaceChildren(
        ...blockNames.map((block) => h("option", { value: block, selected: block === state.block }, block)),
    );
    const variants = Object.keys(report.blocks[state.block]).map((variant) => [
        variant,
        variant,
        variantTitle(variant),
    ]);
    const chosen = compiledFor(state.block, state.variant);
    segments(document.getElementById("variants"), variants, chosen, (variant) => show({ variant }));
    blocks.disabled = state.tab === "overview" || state.tab === "roofline";
}

function variantTitle(name) {
    const { min_tokens: least, max_tokens: most } = specOf(name);
    return least === most ? times(least, "token") : `${least} to ${most} tokens`;
}

function draw() {
    drawBar();
    const graph = document.getElementById("graph");
    for (const tab of TABS) document.getElementById(tab).hidden = tab !== state.tab;
    graph.hidden = state.tab !== "graph" && state.tab !== "rules";
    document.body.dataset.tab = state.tab;
    drawDetails();
    DRAW[state.tab]();
}

function onKey(event) {
    const typing = event.target.matches("input, select, textarea");
    if (event.key === "Escape") {
        if (typing) event.target.blur();
        else if (state.node) show({ node: null });
        else if (state.marked) show({ marked: null });
        closeSearch();
    } else if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
        if (event.key === "/") {
            event.preventDefault();
            searchField.focus();
            searchField.select();
        } else if (event.key === "0") fitPanes();
        else if (TABS[Number(event.key) - 1]) show({ tab: TABS[Number(event.key) - 1] });
    }
}

document.getElementById("bundle").textContent =
    `${report.bundle.name} · ${report.bundle.arch} · ${report.bundle.dtype}`;
document.getElementById("block").addEventListener("change", (event) => show({ block: event.target.value }));
addEventListener("keydown", onKey);
let resized = 0;
addEventListener("resize", () => {
    clearTimeout(resized);
    resized = setTimeout(
        () => (state.tab === "memory" || state.tab === "roofline") && DRAW[state.tab](),
        120,
    );
});
startGraph();
startSearch();
startRules();
watchers.push(draw);
draw();
document.body.dataset.ready = "true";
