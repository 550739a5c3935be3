// The data of the report, with what the views look up in it: graphs by node, kernels by node, colours by kernel.
"use strict";

const report = JSON.parse(document.getElementById("data").textContent);

const blockNames = Object.keys(report.blocks);
const variantNames = report.bundle.variants.map((variant) => variant.name);
const anyStep = report.bundle.any_step;

// The class of steps of a name: a variant, or that of all steps.
const specOf = (name) => [...report.bundle.variants, anyStep].find((spec) => spec.name === name);

// What steps of a variant run of a block: a sampler is compiled once for all of them.
const compiledFor = (block, variant) => (variant in report.blocks[block] ? variant : anyStep.name);
const serves = (block, variant) => compiledFor(block, variant) in report.blocks[block];

const model = {
    indexes: new Map(),

    // One block for the steps of one variant: its data, both graphs, and what leads from one to the other.
    of(block, variant) {
        const compiled = compiledFor(block, variant);
        const key = `${block}.${compiled}`;
        if (!this.indexes.has(key)) this.indexes.set(key, indexed(block, compiled, report.blocks[block][compiled]));
        return this.indexes.get(key);
    },
};

function indexed(block, variant, data) {
    const after = withIndex(report.graphs[data.graph]);
    const before = withIndex(report.graphs[data.traced]);
    const kernelsOf = d3.group(
        data.kernels.map((_, i) => i),
        (i) => data.kernels[i].node,
    );
    const groups = [...kernelsOf.keys()];
    const hue = new Map(groups.map((node, i) => [node, (28 + i * 137.508) % 360]));
    const became = new Map(Object.entries(data.fates));
    const cameFrom = new Map();
    for (const [name, fate] of became) {
        if (fate.node !== null) cameFrom.set(fate.node, [...(cameFrom.get(fate.node) ?? []), name]);
    }
    const kernelsAt = (side, id) => (side === "after" ? kernelsOf.get(id) : became.get(id)?.kernels) ?? [];
    const hueAt = (side, id) => hue.get(side === "after" ? id : became.get(id)?.node);
    return { block, variant, ...data, sides: { before, after }, became, cameFrom, kernelsAt, hueAt };
}

function withIndex(graph) {
    const byId = new Map(graph.nodes.map((node) => [node.id, node]));
    const users = d3.group(
        graph.nodes.flatMap((user) => (user.operands ?? []).map(([from]) => ({ from, user: user.id }))),
        (edge) => edge.from,
    );
    for (const node of graph.nodes) if (node.body) withIndex(node.body);
    return Object.assign(graph, { byId, users });
}

// The node at a path: "mul_2", or "mul_2/silu_1" inside of a fused one.
function nodeAt(graph, path) {
    const [outer, inner] = path.split("/");
    const node = graph.byId.get(outer);
    return inner === undefined || node === undefined ? node : node.body?.byId.get(inner);
}

function opsOf(node) {
    return node.body ? node.body.nodes.filter((n) => n.kind !== "input").map((n) => n.op) : [node.op];
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

// Kernels, floors and bytes of one step of the whole model, blocks counted as often as there are layers.
function stepTotals(variant) {
    const parts = blockNames
        .filter((block) => block in report.bundle.layers && serves(block, variant))
        .flatMap((block) =>
            model.of(block, variant).kernels.map((kernel) => [kernel, report.bundle.layers[block]]),
        );
    return {
        kernels: sum(parts.map(([, layers]) => layers)),
        floor: sum(parts.map(([k, layers]) => k.floor_us * layers)),
        bytes: sum(parts.map(([k, layers]) => k.bytes * layers)),
        kernelsBefore: sum(parts.map(([k, layers]) => k.before.kernels * layers)),
        floorBefore: sum(parts.map(([k, layers]) => k.before.floor_us * layers)),
        bytesBefore: sum(parts.map(([k, layers]) => k.before.bytes * layers)),
    };
}

function si(value, unit) {
    for (const [factor, prefix] of [
        [1e15, "P"],
        [1e12, "T"],
        [1e9, "G"],
        [1e6, "M"],
        [1e3, "k"],
    ]) {
        if (Math.abs(value) >= factor) return `${digits(value / factor)} ${prefix}${unit}`;
    }
    return `${digits(value)} ${unit}`;
}

function digits(value) {
    return Math.abs(value) >= 1000
        ? Math.round(value).toLocaleString("en")
        : String(Number(value.toPrecision(3)));
}

const microseconds = (us) =>
    us >= 1000 ? `${digits(us / 1000)} ms` : us && us < 0.1 ? `${digits(us * 1000)} ns` : `${digits(us)} µs`;
const percent = (share) => (share > 0 && share < 0.01 ? "<1 %" : `${Math.round(share * 100)} %`);

function binaryBytes(bytes) {
    for (const [unit, size] of [
        ["GiB", 2 ** 30],
        ["MiB", 2 ** 20],
        ["KiB", 2 ** 10],
    ]) {
        if (bytes >= size) return `${digits(bytes / size)} ${unit}`;
    }
    return `${bytes} B`;
}

const times = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
