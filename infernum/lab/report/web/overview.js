// The bundle as a whole: what was compiled, how many kernels were saved where, and which rules did it.
"use strict";

const overviewPage = document.getElementById("overview");

function drawOverview() {
    const { bundle } = report;
    overviewPage.replaceChildren(
        h(
            "h1",
            bundle.model.name,
            h("span", `${bundle.model.family}, ${times(bundle.model.num_layers, "layer")}`),
        ),
        h("div.columns", aboutBundle(bundle), programOf(bundle)),
        h("h2", "One step of the whole model"),
        stepTable(bundle),
        h("h2", "Blocks"),
        blockTable(),
        h("h2", "Rules"),
        ruleTable(),
    );
}

function aboutBundle(bundle) {
    const plugins = bundle.plugins.map((p) => h("div", `${p.name} `, h("code", p.sha256.slice(0, 12))));
    const edits = Object.entries(bundle.edits).map(([file, edit]) =>
        h("div", h("code", file), ` edited by hand: ${edit.kernels.join(", ") || "outside of its kernels"}`),
    );
    return factTable([
        ["Bundle", bundle.name],
        ["Compiled for", `${bundle.arch}, ${bundle.dtype}`],
        ["By", `Infernum ${bundle.infernum}${bundle.nvrtc ? `, NVRTC ${bundle.nvrtc}` : ""}`],
        ["Fusion", bundle.rules.length ? `on, ${times(bundle.rules.length, "rule")}` : "off"],
        ["Configuration", h("code", bundle.model.config_hash.slice(0, 16))],
        ["Context", `${bundle.model.context.toLocaleString("en")} tokens, in pages of ${bundle.page_size}`],
        ["Vocabulary", bundle.model.vocab_size.toLocaleString("en")],
        ["Plugins", plugins.length ? plugins : "none"],
        ["Edits", edits.length ? edits : "none: every kernel is as it was emitted"],
        [
            "Measured",
            report.bench ? `${report.roof.gpu}, ${si(report.roof.bytes_per_second, "B/s")} read-only` : null,
        ],
    ]);
}

function programOf(bundle) {
    const stages = Object.entries(bundle.layers).map(([block, layers]) => [
        block,
        layers > 1 ? `× ${layers}` : "",
    ]);
    const chip = ([block, count]) =>
        h(
            "button.stage",
            { type: "button", onclick: () => show({ tab: "graph", block }) },
            block,
            h("span", count),
        );
    return h(
        "div",
        h("h3", "Program"),
        h("div.program", stages.map(chip)),
        h("h3", "then one sampler"),
        h(
            "div.program",
            bundle.samplers.filter((s) => s in report.blocks).map((s) => chip([s, ""])),
        ),
        h("h3", "Variants"),
        factTable(
            bundle.variants.map((v) => [
                v.name,
                `${v.min_tokens === v.max_tokens ? v.min_tokens : `${v.min_tokens} – ${v.max_tokens.toLocaleString("en")}`} ${v.max_tokens === 1 ? "token" : "tokens"} in a step`,
            ]),
        ),
    );
}

const change = (before, after, text) => h("span.change", h("s", text(before)), " ", h("b", text(after)));

function stepTable(bundle) {
    const rows = bundle.variants.map((v) => ({ ...v, ...stepTotals(v.name) }));
    const measured = (row) =>
        report.bench?.ms_per_step && report.bench.variant === row.name
            ? `${digits(report.bench.ms_per_step)} ms`
            : "–";
    return dataTable(
        [
            { title: "Variant", value: (r) => r.name },
            { title: "Tokens", number: true, value: (r) => r.max_tokens.toLocaleString("en") },
            {
                title: "Kernels",
                number: true,
                why: "Before and after fusion",
                value: (r) => change(r.kernelsBefore, r.kernels, (n) => n.toLocaleString("en")),
            },
            {
                title: "Memory traffic",
                number: true,
                why: "Before and after fusion",
                value: (r) => change(r.bytesBefore, r.bytes, (n) => si(n, "B")),
            },
            {
                title: "Floor",
                number: true,
                why: `The least time on ${report.roof.stands_for}: each kernel at its bound`,
                value: (r) => change(r.floorBefore, r.floor, microseconds),
            },
            ...(report.bench?.ms_per_step ? [{ title: "Measured", number: true, value: measured }] : []),
        ],
        rows,
        { onclick: (r) => show({ tab: "graph", variant: r.name }) },
    );
}

function blockTable() {
    const rows = blockNames.flatMap((block) =>
        Object.entries(report.blocks[block]).map(([variant, data], i) => ({
            block,
            variant,
            isFirst: i === 0,
            ...data,
        })),
    );
    return dataTable(
        [
            { title: "Block", value: (r) => (r.isFirst ? h("b", r.block) : "") },
            { title: "Variant", value: (r) => r.variant },
            {
                title: "Kernels",
                number: true,
                why: "Before and after fusion",
                value: (r) => change(r.kernels_before, r.kernels.length, String),
            },
            {
                title: "Floor",
                number: true,
                why: "Before and after fusion",
                value: (r) =>
                    change(
                        sum(r.kernels.map((k) => k.before.floor_us)),
                        sum(r.kernels.map((k) => k.floor_us)),
                        microseconds,
                    ),
            },
            {
                title: "Registers",
                number: true,
                why: "The most that one of its kernels needs",
                value: (r) => d3.max(r.kernels, (k) => k.registers) || "–",
            },
            {
                title: "Spilled",
                number: true,
                value: (r) =>
                    sum(r.kernels.map((k) => k.spill_bytes))
                        ? `${sum(r.kernels.map((k) => k.spill_bytes))} B`
                        : "0",
            },
            { title: "Arena", number: true, value: (r) => binaryBytes(r.arena_bytes) },
            { title: "Fired", number: true, value: (r) => r.rules.fired.length },
            { title: "Refused", number: true, value: (r) => r.rules.refused.length },
        ],
        rows,
        { onclick: (r) => show({ tab: "graph", block: r.block, variant: r.variant }) },
    );
}

function ruleTable() {
    const every = blockNames.flatMap((block) =>
        Object.values(report.blocks[block]).map((data) => data.rules),
    );
    const names = [...new Set([...report.bundle.rules, ...every.flatMap((rules) => rules.tried)])];
    if (!names.length) return h("p.note", "None: compiled with --no-fuse.");
    const count = (kind, rule) =>
        sum(every.map((rules) => rules[kind].filter((entry) => entry.rule === rule).length));
    return dataTable(
        [
            { title: "Rule", value: (rule) => rule },
            { title: "Fired", number: true, value: (rule) => count("fired", rule) || "–" },
            { title: "Refused", number: true, value: (rule) => count("refused", rule) || "–" },
            { title: "Why there is such a rule", value: (rule) => report.rules[rule] ?? "" },
        ],
        names,
        {
            onclick: (rule) => {
                openRule(rule);
            },
        },
    );
}

function openRule(rule) {
    ruleFilter.text = rule;
    document.getElementById("rule-text").value = rule;
    show({ tab: "rules" });
}
