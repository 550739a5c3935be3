// The plots of the page: throughput, latencies, the queue and the cache.
"use strict";

const SPANS = [
    [120, "2 min"],
    [LONGEST_SPAN, "15 min"],
];

const perSecond = (value) => `${amount(value)}/s`;

const plots = [
    new Plot({
        title: "Answers",
        series: [{ name: "tokens generated", value: (point) => point.answers }],
        format: perSecond,
        least: 10,
    }),
    new Plot({
        title: "Prompts",
        series: [
            { name: "tokens taken", value: (point) => point.prompts },
            { name: "cached", value: (point) => point.cachedPrompts },
        ],
        format: perSecond,
        least: 10,
    }),
    new Plot({
        title: "Time to first token",
        series: [
            { name: "median", value: (point) => point.firstMedian },
            { name: "95 % below", value: (point) => point.firstSlow },
        ],
        format: latency,
        least: 0.01,
    }),
    new Plot({
        title: "Time between tokens",
        series: [
            { name: "median", value: (point) => point.gapMedian },
            { name: "95 % below", value: (point) => point.gapSlow },
        ],
        format: latency,
        least: 0.001,
    }),
    new Plot({
        title: "Queue",
        series: [
            { name: "running", value: (point) => point.running },
            { name: "waiting", value: (point) => point.waiting },
        ],
        format: amount,
        least: 4,
    }),
    new Plot({
        title: "KV cache",
        series: [{ name: "in use", value: (point) => point.cache }],
        format: percent,
        least: 0.02,
        most: 1,
    }),
];

let span = SPANS[0][0];

function drawPlots() {
    const now = performance.now() / 1000;
    for (const plot of plots) plot.draw(past.points, now - span, now);
}

function chooseSpan(seconds) {
    span = seconds;
    segments(document.getElementById("span"), SPANS, span, chooseSpan);
    drawPlots();
}

function startPlots() {
    document.getElementById("plots").replaceChildren(...plots.map((plot) => plot.element));
    chooseSpan(span);
    new ResizeObserver(drawPlots).observe(document.getElementById("plots"));
}
