// Finding nodes and kernels of the chosen variant, in every block, by any of their names.
"use strict";

const MOST_MATCHES = 40;
const searchField = document.getElementById("search");
const matchList = document.getElementById("found");
const search = { entries: new Map(), matches: [], at: 0 };

function startSearch() {
    searchField.addEventListener("input", drawMatches);
    searchField.addEventListener("focus", () => searchField.value && drawMatches());
    searchField.addEventListener("blur", () => setTimeout(closeSearch, 150));
    searchField.addEventListener("keydown", (event) => {
        const steps = { ArrowDown: 1, ArrowUp: -1 };
        if (event.key in steps) {
            event.preventDefault();
            pickMatch(search.at + steps[event.key]);
        } else if (event.key === "Enter" && search.matches.length) {
            event.preventDefault();
            openMatch(search.matches[search.at]);
        }
    });
}

function closeSearch() {
    matchList.hidden = true;
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

function drawMatches() {
    const words = lower(searchField.value.replaceAll("%", "")).split(/\s+/).filter(Boolean);
    const ranked = words.length
        ? entriesOf(state.variant)
              .map((entry) => ({ entry, rank: rank(entry, words) }))
              .filter((r) => r.rank !== null)
        : [];
    search.matches = d3
        .sort(ranked, (r) => r.rank)
        .slice(0, MOST_MATCHES)
        .map((r) => r.entry);
    matchList.replaceChildren(
        ...search.matches.map((entry) =>
            h(
                "li",
                {
                    role: "option",
                    onmousedown: (event) => {
                        event.preventDefault();
                        openMatch(entry);
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
    if (words.length && !search.matches.length)
        matchList.append(h("li.none", `Nothing in ${state.variant} is called that`));
    matchList.hidden = words.length === 0;
    pickMatch(0);
}

function pickMatch(at) {
    search.at = Math.max(0, Math.min(at, search.matches.length - 1));
    [...matchList.children].forEach((item, i) => item.setAttribute("aria-selected", String(i === search.at)));
    matchList.children[search.at]?.scrollIntoView({ block: "nearest" });
}

function openMatch({ here, side, node }) {
    closeSearch();
    searchField.blur();
    if (node.kind === "input" && (node.op === "weight" || node.op === "batch")) state.inputs = "all";
    showNode(side, node.id, { block: here.block, tab: "graph" });
}
