// Requests to the server that this page came from, with the key, and failures as sentences.
"use strict";

const ANSWER_MS = 8000; // how long the server may take to say how it is

// A proxy may serve the page below a path, with or without a slash at its end.
const home = location.origin + location.pathname.replace(/\/*$/, "/");

// The key of this tab. Where the browser refuses its storage, the key is forgotten with the page.
const key = {
    place: `infernum key ${home}`,
    value: "",
    load() {
        try {
            this.value = sessionStorage.getItem(this.place) ?? "";
        } catch {
            this.value = "";
        }
    },
    set(value) {
        this.value = value;
        try {
            if (value) sessionStorage.setItem(this.place, value);
            else sessionStorage.removeItem(this.place);
        } catch {
            // the value above is enough until the page is closed
        }
    },
};

// What the server did not do, as a sentence. `status` is 0 where it did not answer.
class Refusal extends Error {
    constructor(status, sentence) {
        super(sentence);
        this.status = status;
    }
}

// The response to a GET, or to a POST of `body`. Throws a Refusal, or AbortError where `signal` says so.
async function request(path, { body, signal } = {}) {
    const headers = key.value ? { authorization: `Bearer ${key.value}` } : {};
    if (body !== undefined) headers["content-type"] = "application/json";
    let response;
    try {
        response = await fetch(home + path, {
            method: body === undefined ? "GET" : "POST",
            headers,
            body: body === undefined ? undefined : JSON.stringify(body),
            signal: signal ?? AbortSignal.timeout(ANSWER_MS),
            cache: "no-store",
        });
    } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new Refusal(0, "The server does not answer.");
    }
    if (!response.ok) throw new Refusal(response.status, await sentenceOf(response));
    return response;
}

// The error of a response as a sentence.
async function sentenceOf(response) {
    try {
        return asSentence((await response.json()).error.message);
    } catch {
        return `The server answers with status ${response.status}.`;
    }
}

function asSentence(message) {
    const text = message.charAt(0).toUpperCase() + message.slice(1);
    return /[.!?]$/.test(text) ? text : `${text}.`;
}

// The events of a stream, decoded. Throws a Refusal for an event that is an error, and where [DONE] does not come.
async function* eventsOf(response) {
    const broken = new Refusal(0, "The connection broke before the answer was complete.");
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let unread = "";
    for (;;) {
        let part;
        try {
            part = await reader.read();
        } catch (error) {
            throw error.name === "AbortError" ? error : broken;
        }
        if (part.done) throw broken;
        const lines = (unread + part.value).split("\n");
        unread = lines.pop();
        for (const line of lines) {
            if (!line.startsWith("data: ")) continue;
            const data = line.slice("data: ".length);
            if (data === "[DONE]") return;
            const event = JSON.parse(data);
            if (event.error) throw new Refusal(event.error.code, asSentence(event.error.message));
            yield event;
        }
    }
}
