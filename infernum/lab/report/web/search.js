// Finding nodes and kernels of the chosen variant, in every block, by any of their names.
"use strict";

const MOST_FOUND = 40;
const searchField = document.getElementById("search");
const foundList = document.getElementById("found");
const search = { entries: new Map(), found: [], at: 0 };

function startSearch() {
    searchField.addEventListener("input", drawFound);
    searchField.addEventListener("focus", () => searchField.value && drawFound());
    searchField.addEventListener("blur", () => setTimeout(closeSearch, 150));
    searchField.addEventListener("keydown", (event) => {
        const steps = { ArrowDown: 1, ArrowUp: -1 };
        if (event.key in steps) {
            event.preventDefault();
            pickFound(search.at + steps[event.key]);
        } else if (event.key === "Enter" && search.found.length) {
            event.preventDefault();
            openFound(search.found[search.at]);
        }
    });
}

function closeSearch() {
    foundList.hidden = true;
}

function entriesOf(variant) {
    if (!search.entries.has(variant)) {
        const blocks = blockNames.filter((block) => serves(block, variant));
        search.entries.set(
            variant,
            blocks.flatMap((block) =>
                ["after", "before"].flatMap((side) => entriesIn(model.of(block, variant), side)),
            ),
        );
    }
    return search.entries.get(variant);
}

function entriesIn(here, side) {
    return here.sides[side].nodes.map((node) => {
        const kernels = here.kernelsAt(side, node.id).map((i) => here.kernels[i]);
        const names = [node.id, node.op, ...kernels.map((k) => k.name)];
        const more = [
            ...opsOf(node),
            ...(node.where ?? []),
            ...(node.parts ?? []),
            ...kernels.flatMap((k) => k.rules),
        ];
        const inner = node.body ? node.body.nodes.map((n) => n.id) : [];
        return { here, side, node, kernels, names: names.map(lower), more: [...more, ...inner].map(lower) };
    });
}

const lower = (text) => text.toLowerCase();

function rank(entry, words) {
    const all = [...entry.names, ...entry.more];
    if (!words.every((word) => all.some((name) => name.includes(word)))) return null;
    const best = (name) =>
        name === words[0] ? 0 : name.startsWith(words[0]) ? 1 : name.includes(words[0]) ? 2 : 3;
    const nearness = entry.here.block === state.block ? 0 : 10;
    return nearness + Math.min(...entry.names.map(best)) + (entry.node.kind === "input" ? 2.5 : 0);
}

function drawFound() {
    const words = lower(searchField.value.replaceAll("%", "")).split(/\s+/).filter(Boolean);
    const ranked = words.length
        ? entriesOf(state.variant)
              .map((entry) => ({ entry, rank: rank(entry, words) }))
              .filter((r) => r.rank !== null)
        : [];
    search.found = d3
        .sort(ranked, (r) => r.rank)
        .slice(0, MOST_FOUND)
        .map((r) => r.entry);
    foundList.replaceChildren(
        ...search.found.map((entry) =>
            h(
                "li",
                {
                    role: "option",
                    onmousedown: (event) => {
                        event.preventDefault();
                        openFound(entry);
                    },
                },
                h("i.swatch", { style: `background:${lineOf(entry.here.hueAt(entry.side, entry.node.id))}` }),
                h(
                    "b",
                    entry.kernels.length && entry.side === "after" ? entry.kernels[0].name : entry.node.op,
                ),
                h("code", `%${entry.node.id}`),
                h("span", `${entry.here.block}, ${entry.side}`),
            ),
        ),
    );
    if (words.length && !search.found.length)
        foundList.append(h("li.none", `Nothing in ${state.variant} is called that`));
    foundList.hidden = words.length === 0;
    pickFound(0);
}

function pickFound(at) {
    search.at = Math.max(0, Math.min(at, search.found.length - 1));
    [...foundList.children].forEach((item, i) => item.setAttribute("aria-selected", String(i === search.at)));
    foundList.children[search.at]?.scrollIntoView({ block: "nearest" });
}

function openFound({ here, side, node }) {
    closeSearch();
    searchField.blur();
    if (node.kind === "input" && (node.op === "weight" || node.op === "batch")) state.inputs = "all";
    showNode(side, node.id, { block: here.block, tab: "graph" });
}
