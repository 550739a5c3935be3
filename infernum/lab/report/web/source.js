// The CUDA of kernels, coloured, with the helpers of the same file.
"use strict";

function sourceOf(here, kernels) {
    const written = kernels.map((i) => here.kernels[i]).filter((kernel) => kernel.part !== null);
    if (!written.length) return null;
    const pre = h("pre", { tabindex: 0 });
    const choose = h("select", { "aria-label": "Part of the file", onchange: () => fill(choose.value) });
    const option = (name) => h("option", { value: name }, name || "head of the file");
    const own = written.map((kernel) => kernel.part);
    const others = Object.keys(here.parts).filter(
        (name) => !own.includes(name) && !here.kernels.some((k) => k.name === name),
    );
    choose.append(...own.map(option), h("optgroup", { label: here.source }, others.map(option)));
    const copy = h("button", { type: "button", onclick: () => copyText(pre.textContent, copy) }, "Copy");
    const toggle = (event) => {
        const tall = event.target.closest(".content").classList.toggle("tall");
        event.target.setAttribute("aria-pressed", String(tall));
        event.target.textContent = tall ? "Facts" : "Enlarge";
    };
    const taller = h(
        "button",
        { type: "button", "aria-pressed": "false", title: "CUDA alone, or below the facts", onclick: toggle },
        "Enlarge",
    );
    const fill = (name) => {
        const code = h("code.hljs");
        code.innerHTML = highlighted(here.parts[name]);
        pre.replaceChildren(code);
    };
    fill(own[0]);
    return h("section.source", h("header", h("h3", "CUDA"), choose, copy, taller), pre);
}

const highlightedTexts = new Map();

function highlighted(number) {
    if (!highlightedTexts.has(number)) {
        highlightedTexts.set(
            number,
            hljs.highlight(report.texts[number], { language: "cpp", ignoreIllegals: true }).value,
        );
    }
    return highlightedTexts.get(number);
}

function copyText(text, button) {
    const area = h("textarea", text);
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    button.textContent = done ? "Copied" : "Not allowed";
    setTimeout(() => (button.textContent = "Copy"), 1500);
}
