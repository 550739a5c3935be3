// What the plots show: a point for each reading of the metrics, and holes where there was none.
"use strict";

const LATENCY_SECONDS = 15; // quantiles are of the requests and tokens of so long
const RATE_SECONDS = 3;
const HOLE_SECONDS = 6; // between readings: nothing is known of the time between
const LONGEST_SPAN = 15 * 60;

const past = { readings: [], points: [] };

// Take a reading. A server that was started again counts from 0.
function record(reading) {
    const { readings, points } = past;
    const last = readings.at(-1);
    if (last && (wasRestarted(last, reading) || reading.at - last.at > HOLE_SECONDS)) recordHole(reading.at);
    readings.push(reading);
    while (readings[0].at < reading.at - LATENCY_SECONDS) readings.shift();
    points.push(pointOf(readings));
    while (points[0].at < reading.at - LONGEST_SPAN) points.shift();
}

// The server did not answer.
function recordHole(at) {
    past.readings.length = 0;
    if (past.points.length && !past.points.at(-1).isHole) past.points.push({ at, isHole: true });
}

function wasRestarted(before, after) {
    const names = ["process_start_time_seconds", "generation_tokens_total", "prompt_tokens_total"];
    const [start, ...counters] = names.map((name) => [before.values.get(name), after.values.get(name)]);
    return start[0] !== start[1] || counters.some(([old, now]) => now < old);
}

function pointOf(readings) {
    const after = readings.at(-1);
    const recent = readings.find((reading) => reading.at >= after.at - RATE_SECONDS);
    const rate = (name) => (recent === after ? null : rateOf(recent, after, name));
    const quantile = (name, share) => quantileOf(readings[0], after, name, share);
    return {
        at: after.at,
        answers: rate("generation_tokens_total"),
        prompts: rate("prompt_tokens_total"),
        cachedPrompts: rate("prompt_tokens_cached_total"),
        firstMedian: quantile("time_to_first_token_seconds", 0.5),
        firstSlow: quantile("time_to_first_token_seconds", 0.95),
        gapMedian: quantile("inter_token_latency_seconds", 0.5),
        gapSlow: quantile("inter_token_latency_seconds", 0.95),
        running: after.values.get("num_requests_running"),
        waiting: after.values.get("num_requests_waiting"),
        cache: after.values.get("kv_cache_usage_perc"),
    };
}
