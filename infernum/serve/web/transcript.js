// The conversation as it is shown. All text of people and models is put into text nodes, never into markup.
"use strict";

const transcript = document.getElementById("transcript");

// A message: its text, and below it a line about it.
class Message {
    constructor(role, name) {
        this.body = h("div.text");
        this.thoughts = null;
        this.line = h("p.note");
        this.element = h("article.message", { class: `message ${role}` }, h("h3", name), this.body, this.line);
        following(() => transcript.append(this.element));
        this.text = "";
        this.unshown = "";
        this.frame = 0;
    }

    // Add text. It is shown with the next frame, since several events may come between two.
    add(text) {
        this.text += text;
        this.unshown += text;
        this.frame ||= setTimeout(() => this.show(), 40);
    }

    show() {
        clearTimeout(this.frame);
        this.frame = 0;
        following(() => this.body.append(this.unshown));
        this.unshown = "";
    }

    // Add text that the model writes before its answer.
    think(text) {
        if (!this.thoughts) {
            this.thoughts = h("div.text");
            this.body.before(h("details.thoughts", h("summary", "Reasoning"), this.thoughts));
        }
        following(() => this.thoughts.append(text));
    }

    note(text, isProblem = false) {
        following(() => {
            this.line.textContent = text;
            this.line.classList.toggle("problem", isProblem);
        });
    }
}

// Change the transcript, and scroll to its end if it was there.
function following(change) {
    const { scrollTop, scrollHeight, clientHeight } = transcript;
    const wasAtEnd = scrollHeight - scrollTop - clientHeight < 40;
    change();
    if (wasAtEnd) transcript.scrollTop = transcript.scrollHeight;
}

// Assistive programs read what is added once it is complete.
function setBusy(isBusy) {
    transcript.setAttribute("aria-busy", String(isBusy));
}
