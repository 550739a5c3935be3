"""Scanners of calls and of reasoning: what models of four families wrote, cut at every character."""

from __future__ import annotations

import json
import random
import time
from itertools import pairwise
from typing import Any

import pytest
from oracle.chat_cases import TEMPLATES

from infernum.chat.calls.families import FAMILIES, family_of
from infernum.chat.calls.scanner import Call
from infernum.chat.reader import AnswerForm, AnswerReader, Thought

Expected = list[str | tuple[str, Any]]

PARIS = {"city": "Paris", "unit": "c"}
NESTED = {"path": 'a "quoted" \\ name', "edits": [{"from": "}\n{", "to": "]"}], "n": -1.5e3, "no": None}
DEEP = json.dumps(NESTED)

OUTPUTS: list[tuple[str, str, Expected]] = [
    ("hermes", "", []),
    ("hermes", "Just text.\n\n", ["Just text.\n\n"]),
    ("hermes", " <tool>, a <tool_ and a </tool_call> ", [" <tool>, a <tool_ and a </tool_call> "]),
    (
        "hermes",
        '<tool_call>\n{"name": "canto", "arguments": {"number": 5}}\n</tool_call>',
        [("canto", {"number": 5})],
    ),
    (
        "hermes",
        'Let me see.\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "unit": "c"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>\nDone. ',
        ["Let me see.", ("weather", PARIS), ("time", {}), "Done. "],
    ),
    ("hermes", f'<tool_call>{{"arguments": {DEEP}, "name": "edit"}}</tool_call>', [("edit", NESTED)]),
    ("hermes", '<tool_call>\n{"name": "now"}\n</tool_call>', [("now", {})]),
    ("hermes", '<tool_call>{"name": "now", "arguments": null}', [("now", {})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [("f", {"a": 1})]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"t": "two\nlines"}}</tool_call>',
        [("f", {"t": "two\nlines"})],
    ),
    (
        "hermes",
        '<tool_call>{"name": "write", "arguments": {"t": "<tool_call>{}</tool_call> 🜚 é"}}</tool_call>',
        [("write", {"t": "<tool_call>{}</tool_call> 🜚 é"})],
    ),
    ("hermes", 'A: <tool_call>{"name": "f", "argum', ['A: <tool_call>{"name": "f", "argum']),
    ("hermes", "<tool_call>oops</tool_call> b", ["<tool_call>oops</tool_call> b"]),
    ("hermes", '<tool_call>{"name": 5}</tool_call> b', ['<tool_call>{"name": 5}</tool_call> b']),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": [1}</tool_call>\n<tool_call>{"name": "g"}</tool_call>',
        ['<tool_call>{"name": "f", "arguments": [1}</tool_call>', ("g", {})],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"x": 1e999}}',
        ['<tool_call>{"name": "f", "arguments": {"x": 1e999}}'],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"x": "\\ud800"}}',
        ['<tool_call>{"name": "f", "arguments": {"x": "\\ud800"}}'],
    ),
    (
        "llama3_json",
        '{"name": "weather", "parameters": {"city": "Paris", "unit": "c"}}',
        [("weather", PARIS)],
    ),
    (
        "llama3_json",
        '\n<|python_tag|>{"name": "weather", "parameters": {"city": "Paris", "unit": "c"}}; '
        '{"name": "edit", "parameters": ' + DEEP + "}",
        [("weather", PARIS), ("edit", NESTED)],
    ),
    ("llama3_json", '{"type": "function", "function": {"name": "f", "parameters": {}}}', [("f", {})]),
    ("llama3_json", '{"name": "Dante", "age": 35}', ['{"name": "Dante", "age": 35}']),
    ("llama3_json", 'He is {"name": "f", "parameters": {}}', ['He is {"name": "f", "parameters": {}}']),
    ("llama3_json", 'So: <|python_tag|>{"name": "f", "parameters": {}}', ["So:", ("f", {})]),
    ("llama3_json", '<|python_tag|>brave.call(q="x")', ['<|python_tag|>brave.call(q="x")']),
    ("llama3_json", '  {"name": "f", "parameters": {"a"', ['  {"name": "f", "parameters": {"a"']),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris", "unit": "c"}}, '
        '{"name": "edit", "arguments": ' + DEEP + "}]",
        [("weather", PARIS), ("edit", NESTED)],
    ),
    ("mistral", 'Wait.\n[TOOL_CALLS][{"name": "f", "arguments": {}}]', ["Wait.", ("f", {})]),
    (
        "mistral",
        '[TOOL_CALLS]weather[ARGS]{"city": "Paris", "unit": "c"}[TOOL_CALLS]time[CALL_ID]a1B2c3D4e[ARGS]{}',
        [("weather", PARIS), ("time", {})],
    ),
    ("mistral", "[TOOL_CALLS]edit" + DEEP, [("edit", NESTED)]),
    ("mistral", "[TOOL_CALLS]f[ARG] {}", ["[TOOL_CALLS]f[ARG] {}"]),
    ("mistral", "[TOOL_CALLS]a\nb", ["[TOOL_CALLS]a\nb"]),
    (
        "mistral",
        '[TOOL_CALLS][{"name": "f", "arguments": {}}, 3]',
        ['[TOOL_CALLS][{"name": "f", "arguments": {}}, 3]'],
    ),
    ("mistral", "See [1] and [TOOL", ["See [1] and [TOOL"]),
    ("pythonic", "[weather(city=\"Paris\", unit='c')]", [("weather", PARIS)]),
    (
        "pythonic",
        ' [time(), geo.edit(path="a \\"quoted\\" \\\\ name", edits=[{"from": "}\\n{", \'to\': "]"}], '
        "n=-1.5e3, no=None)]\nDone.",
        [("time", {}), ("geo.edit", NESTED), "Done."],
    ),
    (
        "pythonic",
        "<|python_start|>[f(x=(1, 2,), y=True, z={})]<|python_end|>",
        [("f", {"x": [1, 2], "y": True, "z": {}})],
    ),
    ("pythonic", "[1] says [f(x=1)]", ["[1] says [f(x=1)]"]),
    ("pythonic", "[a link](http://x)", ["[a link](http://x)"]),
    ("pythonic", "[f(1)] no", ["[f(1)] no"]),
    ("pythonic", "[f(x=__import__('os').system('ls'))]", ["[f(x=__import__('os').system('ls'))]"]),
    ("pythonic", "[f(x='\\d\\x41')]", [("f", {"x": "\\dA"})]),
    ("pythonic", "[f(x=", ["[f(x="]),
    ("pythonic", "[]", ["[]"]),
]


def merged(segments: list[Any]) -> Expected:
    """Segments as they are expected: texts side by side joined, and calls as names with the values of arguments."""
    result: Expected = []
    for segment in segments:
        if isinstance(segment, Call):
            result.append((segment.name, json.loads(segment.arguments)))
        elif isinstance(segment, Thought):
            last = result[-1] if result else None
            texts = last[1] if isinstance(last, tuple) and last[0] == "(thought)" else None
            result[len(result) - (texts is not None) :] = [("(thought)", (texts or "") + segment.text)]
        elif result and isinstance(result[-1], str):
            result[-1] += segment
        else:
            result.append(segment)
    return result


def read(form: AnswerForm, *pieces: str) -> list[Any]:
    reader = AnswerReader(form)
    segments = [segment for piece in pieces for segment in reader.push(piece)]
    return segments + reader.push("", final=True)


@pytest.mark.parametrize(("family", "text", "expected"), OUTPUTS, ids=lambda value: str(value)[:40])
def test_an_output_has_the_same_calls_and_text_wherever_it_is_cut(
    family: str, text: str, expected: Expected
) -> None:
    form = AnswerForm(FAMILIES[family])
    assert merged(read(form, text)) == expected
    assert merged(read(form, *text)) == expected
    arguments = [segment.arguments for segment in read(form, text) if isinstance(segment, Call)]
    for cut in range(1, len(text)):
        segments = read(form, text[:cut], text[cut:])
        assert merged(segments) == expected, cut
        assert [segment.arguments for segment in segments if isinstance(segment, Call)] == arguments


@pytest.mark.parametrize("family", FAMILIES)
def test_random_cuts_of_random_pieces_of_outputs_change_nothing_and_lose_no_text(family: str) -> None:
    """Broken outputs too: parts of valid ones, and marks, in any order."""
    draw = random.Random(family)
    texts = [text for name, text, _ in OUTPUTS if name == family]
    marks = FAMILIES[family].special
    for _ in range(400):
        parts = [draw.choice(texts) for _ in range(3)]
        parts = [part[draw.randrange(len(part) + 1) :][: draw.randrange(60)] for part in parts]
        text = draw.choice(marks).join(parts)
        cuts = sorted(draw.choices(range(len(text) + 1), k=6))
        pieces = [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]
        form = AnswerForm(FAMILIES[family])
        whole = read(form, text)
        assert merged(read(form, *pieces)) == merged(whole), text
        if not any(isinstance(segment, Call) for segment in whole):
            assert "".join(whole) == text


REASONED: list[tuple[str, bool, Expected]] = [
    ("<think>\nHe asks.\n</think>\n\nHell.", False, [("(thought)", "He asks."), "Hell."]),
    ("He asks.\n\nSo.\n</think>\n\nHell.\n", True, [("(thought)", "He asks.\n\nSo."), "Hell.\n"]),
    ("<think>again</think>Hell.", True, [("(thought)", "again"), "Hell."]),
    ("\n<think>\n\n</think>\n\nHell.", False, ["Hell."]),
    ("A <think>tag</think>", False, ["A <think>tag</think>"]),
    ("<thin", False, ["<thin"]),
    (" <", True, [("(thought)", "<")]),
    ("<think>cut </thi", False, [("(thought)", "cut </thi")]),
    (
        '<think>x\n</think>\n<tool_call>{"name": "f"}</tool_call>',
        False,
        [("(thought)", "x"), ("f", {})],
    ),
]


@pytest.mark.parametrize(("text", "opened", "expected"), REASONED)
def test_reasoning_is_parted_from_the_answer_wherever_it_is_cut(
    text: str, opened: bool, expected: Expected
) -> None:
    form = AnswerForm(FAMILIES["hermes"], reasons=True, opened=opened)
    assert merged(read(form, *text)) == expected
    for cut in range(len(text)):
        assert merged(read(form, text[:cut], text[cut:])) == expected, cut


def test_only_the_first_call_stays_where_one_is_asked_for() -> None:
    text = '<tool_call>{"name": "f"}</tool_call><tool_call>{"name": "g"}</tool_call> end'
    assert merged(read(AnswerForm(FAMILIES["hermes"], one_call=True), text)) == [("f", {}), "end"]


def test_ids_of_calls_differ_and_are_what_the_templates_of_mistral_accept() -> None:
    ids = {Call("f", "{}").id for _ in range(1000)}
    assert len(ids) == 1000 and all(len(each) == 9 and each.isalnum() for each in ids)


HOSTILE = [
    "{" * 50_000,
    '{"a":' * 20_000,
    "[" * 50_000,
    '"' * 50_000,
    "\\" * 50_000,
    " " * 50_000,
    "f(" * 25_000,
    "[f(x=" + "[" * 40_000,
    "[f(x=" + "1" * 50_000 + ")]",
    "[TOOL" * 10_000,
    "<tool_" * 8_000,
    "[f(x='" + "\\" * 50_001 + "')]",
    "a" * 50_000,
    '{"' + '\\"' * 25_000,
]


@pytest.mark.parametrize("family", FAMILIES)
def test_13_no_output_of_a_model_takes_long_to_read(family: str) -> None:
    """Row 13 of the known failures: parsers that go back over an output took seconds for 150 characters."""
    scanner = FAMILIES[family]
    for text in HOSTILE:
        for begin in ("", scanner.mark):
            start = time.process_time()
            pieces = [(begin + text)[place : place + 4] for place in range(0, len(begin + text), 4)]
            assert "".join(read(AnswerForm(scanner), *pieces)) == begin + text
            assert time.process_time() - start < 1.0, (begin, text[:20])


@pytest.mark.parametrize(
    ("template", "family"),
    [
        ("hermes", "hermes"),
        ("thinking", None),
        ("headers_tools", "llama3_json"),
        ("inst_tools", "mistral"),
        ("chatml", None),
    ],
)
def test_the_family_is_known_by_the_template(template: str, family: str | None) -> None:
    expected = None if family is None else FAMILIES[family]
    assert family_of(TEMPLATES[template]) is expected


def test_templates_of_other_syntaxes_are_not_mistaken_for_hermes() -> None:
    assert family_of("<tool_call>\n<function=NAME>") is None
    assert family_of("<tool_call>NAME\n<arg_key>") is None
    assert family_of('{% if tools %}[func_name1(params_name1="x")]{% endif %}') is FAMILIES["pythonic"]
