// The table of the sequences that the server has not finished, one row each, updated in place.
"use strict";

const STATES = { waiting: "waiting", prompt: "reading prompt", answer: "answering" };

const rows = new Map(); // by request, and by the place among those of one request

function drawSequences({ sequences, unfinished }, at) {
    const table = document.getElementById("sequences");
    const seen = new Map();
    const drawn = sequences.map((sequence) => {
        const place = seen.get(sequence.request) ?? 0;
        seen.set(sequence.request, place + 1);
        return [`${sequence.request} ${place}`, sequence];
    });
    const names = new Set(drawn.map(([name]) => name));
    for (const [name, row] of rows) {
        if (names.has(name)) continue;
        row.element.remove();
        rows.delete(name);
    }
    for (const [name, sequence] of drawn) {
        if (!rows.has(name)) rows.set(name, newRow(sequence, table.tBodies[0]));
        updateRow(rows.get(name), sequence, at);
    }
    const most = sequences.length < unfinished ? `, the ${sequences.length} oldest of which are here` : "";
    document.getElementById("sequences-count").textContent = unfinished ? `${unfinished} unfinished${most}` : "";
    document.getElementById("idle").hidden = unfinished > 0;
    table.hidden = unfinished === 0;
}

function newRow(sequence, body) {
    const cells = Object.fromEntries(
        ["state", "age", "prompt", "answer", "speed"].map((name) => [
            name,
            h(name === "state" ? "td" : "td.number"),
        ]),
    );
    const name = h("td", h("code", { title: sequence.request }, sequence.request));
    const element = h("tr", name, Object.values(cells));
    body.append(element);
    return { element, cells, last: null };
}

function updateRow(row, sequence, at) {
    const { cells, last } = row;
    const set = (cell, text) => cell.textContent !== text && (cell.textContent = text);
    row.element.dataset.state = sequence.state;
    set(cells.state, STATES[sequence.state]);
    set(cells.age, duration(sequence.seconds));
    set(cells.prompt, grouped.format(sequence.prompt_tokens));
    cells.prompt.title = `${grouped.format(sequence.cached_tokens)} of them from the cache`;
    set(cells.answer, `${grouped.format(sequence.output_tokens)} of ${grouped.format(sequence.max_tokens)}`);
    cells.answer.title = "Tokens so far, and at most";
    cells.answer.style.setProperty("--part", `${(100 * sequence.output_tokens) / sequence.max_tokens}%`);
    const speed = last && at > last.at ? (sequence.output_tokens - last.tokens) / (at - last.at) : null;
    set(cells.speed, speed === null || sequence.state !== "answer" ? "–" : amount(speed));
    row.last = { at, tokens: sequence.output_tokens };
}
