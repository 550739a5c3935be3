// Numbers and times in words.
"use strict";

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3, notation: "compact" });

// A number of things, or of things a second: 0.4, 12, 1,234, 56.7K.
function amount(value) {
    if (value > 0 && value < 10) return String(Number(value.toPrecision(2)));
    return value < 10000 ? grouped.format(value) : short.format(value);
}

// A duration that is measured: 850 µs, 12 ms, 1.2 s.
function latency(seconds) {
    if (seconds === 0) return "0 s";
    if (seconds < 1e-3) return `${Math.round(seconds * 1e6)} µs`;
    if (seconds < 1) return `${Number((seconds * 1e3).toPrecision(seconds < 0.01 ? 2 : 3))} ms`;
    return seconds < 100 ? `${seconds.toFixed(seconds < 10 ? 1 : 0)} s` : duration(seconds);
}

// A duration that goes on: 5 s, 3 min 4 s, 2 h 5 min, 3 d 1 h.
function duration(seconds) {
    const units = [
        ["d", 86400],
        ["h", 3600],
        ["min", 60],
        ["s", 1],
    ];
    const first = units.findIndex(([, size]) => seconds >= size);
    if (first < 0) return "0 s";
    const [name, size] = units[first];
    const whole = `${Math.floor(seconds / size)} ${name}`;
    const [nextName, nextSize] = units[first + 1] ?? [];
    const rest = nextSize ? Math.floor((seconds % size) / nextSize) : 0;
    return rest ? `${whole} ${rest} ${nextName}` : whole;
}

const percent = (share) => `${Number((100 * share).toPrecision(share < 0.1 ? 2 : 3))} %`;
const plural = (count, word) => `${grouped.format(count)} ${word}${count === 1 ? "" : "s"}`;
