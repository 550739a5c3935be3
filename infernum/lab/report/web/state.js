// What is being looked at. Everything that a link should preserve is in the URL's hash; views redraw when it changes.
"use strict";

const TABS = ["overview", "graph", "rules", "memory", "roofline"];
const VIEWS = ["before", "after", "both"];

const state = readHash();
const watchers = [];

function readHash() {
    const query = new URLSearchParams(location.hash.slice(1));
    const one = (name, known, otherwise) => (known.includes(query.get(name)) ? query.get(name) : otherwise);
    const block = one("block", blockNames, mainBlock());
    return {
        tab: one("tab", TABS, "overview"),
        block,
        variant: one("variant", variantNames, measuredVariant()),
        view: one("view", VIEWS, "both"),
        inputs: query.get("inputs") === "all" ? "all" : "few",
        node: nodeOf(query.get("node")),
        marked: null, // nodes that a rule is about: {before: [...], after: [...], row}
        open: new Set(), // fused nodes shown with their bodies, as "block.variant/node"
    };
}

// A node is "before:linear_1", "after:mul_2" or "after:mul_2/silu_1".
function nodeOf(text) {
    const [side, path] = (text ?? "").split(":");
    return (side === "before" || side === "after") && path ? { side, path } : null;
}

function mainBlock() {
    return d3.greatest(blockNames, (block) => report.bundle.layers[block] ?? 0);
}

function measuredVariant() {
    return variantNames.includes(report.bench?.variant) ? report.bench.variant : variantNames[0];
}

// Change what is looked at. Another block or variant forgets the node, unless `change` has one. A block that is compiled once
// is of no variant in particular: the one that was looked at stays.
function show(change) {
    if (change.variant === anyStep.name) change = { ...change, variant: state.variant };
    const moved = ["block", "variant"].some((name) => name in change && change[name] !== state[name]);
    if (moved) Object.assign(state, { node: null, marked: null });
    Object.assign(state, change);
    if (state.node && !nodeAt(current().sides[state.node.side], state.node.path)) state.node = null;
    history.replaceState(null, "", hashOf(state));
    for (const watcher of watchers) watcher(state, change);
}

function hashOf({ tab, block, variant, view, inputs, node }) {
    const query = new URLSearchParams({ tab, block, variant, view });
    if (inputs === "all") query.set("inputs", inputs);
    const hash = `#${query}`;
    return node ? `${hash}&node=${node.side}:${encodeURI(node.path)}` : hash;
}

function current() {
    return model.of(state.block, state.variant);
}

// Open a node's details, with its graph in view.
function showNode(side, path, more = {}) {
    const view = state.view === "both" || state.view === side ? state.view : side;
    show({ node: { side, path }, view, marked: null, ...more });
}

// Open the node that a kernel computes, without leaving the tab.
function showKernel(block, variant, index, more = {}) {
    const kernel = model.of(block, variant).kernels[index];
    showNode("after", kernel.node, { block, variant, ...more });
}

window.addEventListener("hashchange", () => {
    show({ ...readHash(), open: state.open });
});
