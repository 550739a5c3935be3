// The rules: where each fired and what it made, where it was refused and why; a row marks its nodes in the graph.
"use strict";

const rulesPage = document.getElementById("rules");
const ruleFilter = { what: "all", text: "" };

function startRules() {
    rulesPage.append(
        h(
            "div.tools",
            h("div.segments", { id: "rule-kinds", role: "group", "aria-label": "Firings or refusals" }),
            h("input", {
                id: "rule-text",
                type: "search",
                placeholder: "Filter",
                "aria-label": "Filter rules",
                oninput: (event) => {
                    ruleFilter.text = event.target.value;
                    drawRules();
                },
            }),
        ),
        h("div", { id: "rule-list" }),
    );
}

function drawRules() {
    const { rules } = current();
    const kinds = [
        ["all", "All"],
        ["fired", `Fired ${rules.fired.length}`],
        ["refused", `Refused ${rules.refused.length}`],
    ];
    segments(document.getElementById("rule-kinds"), kinds, ruleFilter.what, (what) => {
        ruleFilter.what = what;
        drawRules();
    });
    const matches = (entry) =>
        lower([entry.rule, entry.at, entry.made ?? "", entry.reason ?? ""].join(" ")).includes(
            lower(ruleFilter.text),
        );
    const shown = (kind) =>
        ruleFilter.what === "all" || ruleFilter.what === kind ? rules[kind].filter(matches) : [];
    const fired = d3.group(shown("fired"), (entry) => entry.rule);
    const refused = d3.group(shown("refused"), (entry) => entry.rule);
    const silent = rules.tried.filter(
        (rule) => !rules.fired.some((f) => f.rule === rule) && !rules.refused.some((r) => r.rule === rule),
    );
    const names = rules.tried.filter((rule) => fired.has(rule) || refused.has(rule));
    document.getElementById("rule-list").replaceChildren(
        ...names.map((rule) =>
            h(
                "section.rule",
                h(
                    "h3",
                    rule,
                    h(
                        "span",
                        [
                            fired.has(rule) ? `fired ${fired.get(rule).length}×` : "",
                            refused.has(rule) ? `refused ${refused.get(rule).length}×` : "",
                        ]
                            .filter(Boolean)
                            .join(", "),
                    ),
                ),
                report.rules[rule] ? h("p.why", report.rules[rule]) : null,
                (fired.get(rule) ?? []).map((entry) =>
                    ruleRow(entry, "fired", h("span", entry.at, h("b", " → "), entry.made)),
                ),
                (refused.get(rule) ?? []).map((entry) =>
                    ruleRow(entry, "refused", h("span", entry.at, h("em", entry.reason))),
                ),
            ),
        ),
        names.length
            ? ""
            : h(
                  "p.note",
                  rules.tried.length
                      ? "Nothing here."
                      : "No rules were tried: the bundle was compiled without them.",
              ),
        ruleFilter.what === "all" && !ruleFilter.text && silent.length
            ? h(
                  "section.rule.silent",
                  h("h3", "Found nowhere"),
                  h(
                      "p.why",
                      silent.flatMap((rule, i) => [
                          i ? ", " : "",
                          h("span", { title: report.rules[rule] }, rule),
                      ]),
                  ),
              )
            : "",
    );
}

function ruleRow(entry, kind, content) {
    const pressed = state.marked?.entry === entry;
    const toggle = () =>
        show({ marked: pressed ? null : { before: entry.before, after: entry.after, entry }, node: null });
    return h(
        "button.row",
        {
            type: "button",
            class: `row ${kind}`,
            "aria-pressed": String(pressed),
            onclick: toggle,
            title: "Mark its nodes in the graph",
        },
        h("i", kind === "fired" ? "fired" : "refused"),
        content,
    );
}
