// The chat: a conversation for models with a chat template, single texts to continue for others.
"use strict";

const FIRST_COMPLETION_TOKENS = 256; // of a text that is continued, where the settings have no number
const field = (id) => document.getElementById(id);

const chat = {
    hasTemplate: true,
    messages: [], // those of the conversation that were answered, and their answers
    running: null, // the AbortController of the answer that is coming
};

function startChat() {
    field("composer").addEventListener("submit", (event) => {
        event.preventDefault();
        if (!chat.running) send(field("prompt").value);
    });
    field("prompt").addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        field("composer").requestSubmit();
    });
    field("prompt").addEventListener("input", fitPrompt);
    field("stop").addEventListener("click", stopAnswer);
    field("chat").addEventListener("keydown", (event) => event.key === "Escape" && stopAnswer());
    field("clear").addEventListener("click", clearChat);
}

// The height of the field follows its text, up to what the style allows.
function fitPrompt() {
    const prompt = field("prompt");
    prompt.style.height = "auto";
    prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

function useTemplate(hasTemplate) {
    chat.hasTemplate = hasTemplate;
    field("chat-title").textContent = hasTemplate ? "Chat" : "Continue a text";
    field("prompt").placeholder = hasTemplate ? "Write a message" : "Begin a text";
    field("most").placeholder = hasTemplate ? "as many as fit" : String(FIRST_COMPLETION_TOKENS);
    for (const element of document.querySelectorAll("#settings .wide")) element.hidden = !hasTemplate;
    transcript.dataset.empty = hasTemplate
        ? "Ask the model something. Nothing is stored: the conversation ends with this page."
        : "This model has no chat template, so it continues what you write. Each text stands for itself.";
}

function useModels(names) {
    const chosen = field("names").value;
    field("names").replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    if (names.includes(chosen)) field("names").value = chosen;
    field("names").hidden = names.length < 2;
}

async function send(text) {
    if (!text.trim()) return;
    const mine = new Message("user", chat.hasTemplate ? "You" : "Text");
    mine.add(text);
    mine.show();
    field("prompt").value = "";
    fitPrompt();
    transcript.scrollTop = transcript.scrollHeight;
    const answer = new Message("assistant", chat.hasTemplate ? field("names").value : "Continued");
    answer.note("waiting for the first token");
    chat.running = new AbortController();
    setAnswering(true);
    try {
        await receive(answer, text);
        if (chat.hasTemplate) chat.messages.push(...turnOf(text, answer.text));
    } catch (error) {
        failTurn(answer, text, error);
    } finally {
        chat.running = null;
        setAnswering(false);
    }
}

const turnOf = (text, answer) => [
    { role: "user", content: text },
    { role: "assistant", content: answer },
];

// Show an answer as it comes, and how fast it came.
async function receive(answer, text) {
    const { path, body } = questionOf(text);
    const begun = performance.now();
    const response = await request(path, { body, signal: chat.running.signal });
    const times = { first: null, last: null, tokens: 0, reason: null };
    for await (const event of eventsOf(response)) {
        const choice = event.choices[0];
        times.tokens = event.usage?.completion_tokens ?? times.tokens;
        if (!choice) continue;
        times.last = performance.now();
        if (times.tokens) times.first ??= { at: times.last, tokens: times.tokens };
        const reasoning = choice.delta?.reasoning ?? choice.delta?.reasoning_content;
        if (reasoning) answer.think(reasoning);
        answer.add(choice.delta?.content ?? choice.text ?? "");
        times.reason = choice.finish_reason ?? times.reason;
        answer.note(speedOf(times, begun));
    }
    answer.show();
    answer.note(speedOf(times, begun));
}

// Tokens, tokens a second after the first ones, and the time to those. Several tokens may come in one event.
function speedOf({ first, last, tokens, reason }, begun) {
    if (!first) return "waiting for the first token";
    const seconds = (last - first.at) / 1000;
    const parts = [plural(tokens, "token")];
    if (seconds > 0 && tokens > first.tokens) parts.push(`${amount((tokens - first.tokens) / seconds)} tokens/s`);
    parts.push(`first after ${latency((first.at - begun) / 1000)}`);
    if (reason === "length") parts.push("cut at the most tokens allowed");
    return parts.join(" · ");
}

function questionOf(text) {
    const number = (id) => (field(id).value === "" ? undefined : Number(field(id).value));
    const body = {
        model: field("names").value || undefined,
        stream: true,
        stream_options: { include_usage: true, continuous_usage_stats: true },
        temperature: number("temperature"),
    };
    const most = number("most");
    if (!chat.hasTemplate)
        return {
            path: "v1/completions",
            body: { ...body, prompt: text, max_tokens: most ?? FIRST_COMPLETION_TOKENS },
        };
    const system = field("system").value.trim();
    const messages = [
        ...(system ? [{ role: "system", content: system }] : []),
        ...chat.messages,
        { role: "user", content: text },
    ];
    return { path: "v1/chat/completions", body: { ...body, messages, max_completion_tokens: most } };
}

// What has come of a stopped answer is part of the conversation. A question without an answer goes back to its field.
function failTurn(answer, text, error) {
    answer.show();
    const wasStopped = error.name === "AbortError";
    if (!wasStopped && !(error instanceof Refusal)) throw error;
    if (answer.text && chat.hasTemplate) chat.messages.push(...turnOf(text, answer.text));
    if (!answer.text && !field("prompt").value) {
        field("prompt").value = text;
        fitPrompt();
    }
    answer.note(wasStopped ? "stopped" : error.message, !wasStopped);
    if (error.status === 401) lock(error.message);
}

function setAnswering(isAnswering) {
    setBusy(isAnswering);
    const hadFocus = document.activeElement === field(isAnswering ? "send" : "stop");
    field("send").hidden = isAnswering;
    field("stop").hidden = !isAnswering;
    field("clear").disabled = false;
    if (hadFocus) field(isAnswering ? "stop" : "prompt").focus();
}

function stopAnswer() {
    chat.running?.abort();
}

function clearChat() {
    stopAnswer();
    chat.messages = [];
    transcript.replaceChildren();
    field("clear").disabled = true;
    field("prompt").focus();
}
