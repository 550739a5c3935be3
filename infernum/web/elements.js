// Making elements, choices and the tooltip, for the report and the server's page.
"use strict";

// An element: h("p.note", {title: "…", onclick: f}, "text", child, [children], null).
function h(what, ...rest) {
    const [tag, ...classes] = what.split(".");
    const element = document.createElement(tag || "div");
    if (classes.length) element.className = classes.join(" ");
    const [first] = rest;
    const isAttributes =
        first !== null && typeof first === "object" && !Array.isArray(first) && !(first instanceof Node);
    if (isAttributes) {
        for (const [name, value] of Object.entries(rest.shift())) {
            if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
            else if (value !== null && value !== undefined && value !== false)
                element.setAttribute(name, value);
        }
    }
    element.append(
        ...rest.flat(3).filter((child) => child !== null && child !== undefined && child !== false),
    );
    return element;
}

// Buttons of which one is pressed.
function segments(container, choices, chosen, choose) {
    container.replaceChildren(
        ...choices.map(([value, text, title]) =>
            h(
                "button",
                {
                    type: "button",
                    title,
                    "aria-pressed": String(value === chosen),
                    onclick: () => choose(value),
                },
                text,
            ),
        ),
    );
}

const tip = {
    element: document.getElementById("tip"),
    show(event, ...content) {
        this.element.replaceChildren(...content);
        this.element.hidden = false;
        const { clientWidth: width, clientHeight: height } = this.element;
        const left = Math.min(event.clientX + 14, innerWidth - width - 8);
        const below = event.clientY + 16 + height < innerHeight;
        this.element.style.left = `${Math.max(8, left)}px`;
        this.element.style.top = `${below ? event.clientY + 16 : Math.max(8, event.clientY - height - 10)}px`;
    },
    hide() {
        this.element.hidden = true;
    },
};
