// The page: asks the server how it is, again and again while it can be seen, and draws the answers.
"use strict";

const PERIOD_MS = 1000;
const LONGEST_PAUSE_MS = 5000; // between attempts while the server does not answer

const health = document.getElementById("health");
let timer = 0;
let failures = 0;
let isLooking = false;
let hasModels = false;

// One look at the server; the next one follows by itself, unless the page is hidden or a key is missing.
async function look() {
    if (isLooking) return;
    isLooking = true;
    clearTimeout(timer);
    try {
        if (!hasModels) useModels((await (await request("v1/models")).json()).data.map((model) => model.id));
        hasModels = true;
        const answers = await Promise.all([request("metrics"), request("status")]);
        show(await answers[0].text(), await answers[1].json());
        failures = 0;
        schedule(PERIOD_MS);
    } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        fail(error);
    } finally {
        isLooking = false;
    }
}

function schedule(milliseconds) {
    if (!document.hidden) timer = setTimeout(look, milliseconds);
}

function show(metrics, status) {
    const at = performance.now() / 1000;
    record(parseMetrics(metrics, at));
    unlock();
    useTemplate(status.chat);
    drawTitle(status);
    drawSequences(status, at);
    drawPlots();
    showTrouble(status.trouble ? asSentence(status.trouble) : "");
    setHealth(status.trouble ? "troubled" : "healthy", status.trouble ? "in trouble" : "healthy");
    document.body.dataset.ready = "";
}

function fail(error) {
    hasModels = false;
    failures += 1;
    recordHole(performance.now() / 1000);
    if (error.status === 401) {
        setHealth("waiting", "locked");
        showTrouble("");
        lock(key.value ? error.message : "");
        return;
    }
    setHealth("gone", error.status ? "in trouble" : "no answer");
    showTrouble(`${error.message} It is asked again every few seconds.`);
    drawPlots();
    schedule(Math.min(LONGEST_PAUSE_MS, PERIOD_MS * failures));
}

function drawTitle(status) {
    const cache = grouped.format(status.pages * status.page_size);
    const facts = [
        status.device,
        status.dtype,
        `${grouped.format(status.max_model_len)} tokens of context`,
        `a cache of ${cache} tokens`,
        `up ${duration(status.seconds)}`,
        `Infernum ${status.version}`,
    ];
    document.getElementById("name").textContent = status.model;
    document.getElementById("facts").textContent = facts.join(" · ");
    document.getElementById("model").textContent = status.model;
    document.title = `${status.model} · Infernum`;
}

function setHealth(state, word) {
    health.dataset.state = state;
    if (health.textContent !== word) health.textContent = word;
}

function showTrouble(sentence) {
    const trouble = document.getElementById("trouble");
    trouble.hidden = !sentence;
    if (trouble.textContent !== sentence) trouble.textContent = sentence;
}

// On narrow screens the page shows one of its two parts.
function chooseTab(name) {
    document.body.dataset.tab = name;
    for (const tab of document.querySelectorAll("#tabs button"))
        tab.setAttribute("aria-selected", String(tab.dataset.tab === name));
    drawPlots();
}

for (const tab of document.querySelectorAll("#tabs button"))
    tab.addEventListener("click", () => chooseTab(tab.dataset.tab));
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : look()));
key.load();
startKey(look);
startChat();
startPlots();
look();
