// Metrics in the text format of Prometheus, and what two readings of them say of the time between.
"use strict";

const SAMPLE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const numberOf = (text) => Number(text.replace("Inf", "Infinity"));

// A reading: sums by name, and histograms as [bound, values up to it] by name. Names are without their prefix, which
// `--metrics-prefix` chooses; samples that differ in labels alone are added.
function parseMetrics(text, at) {
    const values = new Map();
    const histograms = new Map();
    for (const line of text.split("\n")) {
        const sample = line.startsWith("#") ? null : SAMPLE.exec(line);
        if (!sample) continue;
        const name = sample[1].slice(sample[1].lastIndexOf(":") + 1);
        const value = numberOf(sample[3]);
        if (name.endsWith("_bucket")) {
            const bound = [...sample[2].matchAll(LABEL)].find(([, label]) => label === "le")[2];
            const histogram = name.slice(0, -"_bucket".length);
            if (!histograms.has(histogram)) histograms.set(histogram, []);
            histograms.get(histogram).push([numberOf(bound), value]);
        } else values.set(name, (values.get(name) ?? 0) + value);
    }
    return { at, values, histograms };
}

// Growth a second of a counter between two readings.
function rateOf(before, after, name) {
    const grown = (after.values.get(name) ?? 0) - (before.values.get(name) ?? 0);
    return after.at > before.at ? grown / (after.at - before.at) : null;
}

// The value below which a share of a histogram's values between two readings lie, as if they were spread evenly within
// each bucket; null where there are none.
function quantileOf(before, after, name, share) {
    const old = before.histograms.get(name) ?? [];
    const counts = (after.histograms.get(name) ?? []).map(([bound, count], i) => [
        bound,
        count - (old[i]?.[1] ?? 0),
    ]);
    const total = counts.at(-1)?.[1] ?? 0;
    if (total <= 0) return null;
    let [low, below] = [0, 0];
    for (const [bound, count] of counts) {
        if (count >= share * total) {
            if (bound === Infinity) return low;
            return low + ((bound - low) * (share * total - below)) / (count - below);
        }
        [low, below] = [bound, count];
    }
    return low;
}
