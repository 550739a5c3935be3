// The form that asks for the key of the server.
"use strict";

const lockForm = document.getElementById("lock");
const keyField = document.getElementById("key");

// Show the form in place of the page; `problem` is why the key that there was does not fit.
function lock(problem = "") {
    showProblem(problem);
    if (!lockForm.hidden) return;
    stopAnswer();
    key.set("");
    lockForm.hidden = false;
    document.querySelector("main").hidden = true;
    document.getElementById("forget").hidden = true;
    keyField.value = "";
    keyField.focus();
}

function unlock() {
    document.getElementById("forget").hidden = !key.value;
    document.querySelector("main").hidden = false;
    if (lockForm.hidden) return;
    lockForm.hidden = true;
    field("prompt").focus();
}

function showProblem(problem) {
    document.getElementById("key-problem").textContent = problem;
    keyField.setAttribute("aria-invalid", String(problem !== ""));
}

// `look` asks the server with the key.
function startKey(look) {
    lockForm.addEventListener("submit", (event) => {
        event.preventDefault();
        const typed = keyField.value.trim();
        if (!/^[\x21-\x7e]+$/.test(typed)) {
            showProblem("A key has only letters, digits and signs of ASCII.");
            return;
        }
        key.set(typed);
        showProblem("");
        look();
    });
    document.getElementById("forget").addEventListener("click", () => {
        key.set("");
        lock();
    });
}
