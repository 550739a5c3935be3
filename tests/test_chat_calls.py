"""Scanners of calls and of reasoning: what models of four families wrote, cut at every character."""

from __future__ import annotations

import json
import random
import time
from itertools import pairwise
from typing import Any

import pytest
from oracle.chat_cases import TEMPLATES

from infernum.chat.calls.body import Arguments, Call
from infernum.chat.calls.families import FAMILIES, family_of
from infernum.chat.reader import AnswerForm, AnswerReader, Segment, Thought
from infernum.chat.reader import merged as joined

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
    ("hermes", '<tool_call>{"name": "f", "arguments": {\'x\': 1}}', [("f", "{'x': 1}")]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"x": [1}}</tool_call>\n<tool_call>{"name": "g"}</tool_call>',
        [("f", '{"x": [1}'), "}</tool_call>", ("g", {})],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "a\nb', [("f", '{"x": "a\\nb')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}, oops', [("f", {}), ", oops"]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}, "id": [1], "n": 1}\nSo.', [("f", {}), "So."]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}', [("f", {})]),
    (
        "hermes",
        '<tool_call>{"name": "\\ud800", "arguments": {}}',
        ['<tool_call>{"name": "\\ud800", "arguments": {}}'],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": tru}}',
        ['<tool_call>{"name": "f", "arguments": tru}}'],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {\n  "x": "\\"\t\\\\"\n}}',
        [("f", {"x": '"\t\\'})],
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
    (
        "llama3_json",
        '{"type": "function", "function": {"function": {}, "name": "f", "parameters": {}}, "id": 3}',
        [("f", {})],
    ),
    ("llama3_json", '{"type": "function", "function": {"name": "f", "parameters": {}}}', [("f", {})]),
    ("llama3_json", '{"name": "Dante", "age": 35}', ['{"name": "Dante", "age": 35}']),
    ("llama3_json", 'He is {"name": "f", "parameters": {}}', ['He is {"name": "f", "parameters": {}}']),
    ("llama3_json", 'So: <|python_tag|>{"name": "f", "parameters": {}}', ["So:", ("f", {})]),
    ("llama3_json", '<|python_tag|>brave.call(q="x")', ['<|python_tag|>brave.call(q="x")']),
    ("llama3_json", '  {"name": "f", "parameters": {"a"', [("f", '{"a"')]),
    ("llama3_json", '  {"name": "f", "parameters": ', ['  {"name": "f", "parameters": ']),
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
        [("f", {}), "3]"],
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
    ("pythonic", "[f(x=1, y=", [("f", '{"x": 1'), "y="]),
    ("pythonic", "[f(x=1, y=1e999)] no", [("f", '{"x": 1'), "y=1e999)] no"]),
    ("pythonic", "[f(x='a' \"b\"), ]", [("f", {"x": "ab"})]),
    ("pythonic", "[f(x='\\ud800')]", ["[f(x='\\ud800')]"]),
    ("pythonic", '{"name": "f", "parameters": {"x": 1}}', [("f", {"x": 1})]),
    ("pythonic", "[]", ["[]"]),
]


def merged(segments: list[Segment]) -> Expected:
    """Segments as they are expected: calls as names and the values of their arguments, or their text if broken."""
    return [_expected(segment) for segment in joined(segments)]


def _expected(segment: Segment) -> str | tuple[str, Any]:
    match segment:
        case Call(name, arguments):
            try:
                return name, json.loads(arguments)
            except ValueError:
                return name, arguments
        case Thought(text):
            return "(thought)", text
        case str():
            return segment
        case Arguments():
            raise AssertionError("arguments belong to a call")


def arguments_in(segments: list[Segment]) -> list[str]:
    return [segment.arguments for segment in joined(segments) if isinstance(segment, Call)]


def read(form: AnswerForm, *pieces: str) -> list[Segment]:
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
    arguments = arguments_in(read(form, text))
    for cut in range(1, len(text)):
        segments = read(form, text[:cut], text[cut:])
        assert merged(segments) == expected, cut
        assert arguments_in(segments) == arguments


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
        assert joined(read(form, *pieces)) == joined(whole), text
        if not any(isinstance(segment, Call) for segment in whole):
            assert "".join(map(str, whole)) == text


STREAMED = [
    ("hermes", '<tool_call>\n{"name": "f", "arguments": ', '{"t": "one two"}', "}\n</tool_call>"),
    ("llama3_json", '{"name": "f", "parameters": ', '{"t": "one two"}', "}"),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": ', '{"t": "one two"}', "}]"),
    ("mistral", "[TOOL_CALLS]f[ARGS]", '{"t": "one two"}', ""),
]


@pytest.mark.parametrize(("family", "front", "arguments", "end"), STREAMED)
def test_arguments_come_while_the_model_writes_them(
    family: str, front: str, arguments: str, end: str
) -> None:
    reader = AnswerReader(AnswerForm(FAMILIES[family]))
    assert reader.push(front) == []
    for character in arguments:
        expected = Call("f", "{") if character == "{" else Arguments(character)
        assert reader.push(character) == [expected]
    assert reader.push(end, final=True) == []


def test_arguments_in_python_come_one_by_one() -> None:
    reader = AnswerReader(AnswerForm(FAMILIES["pythonic"]))
    pieces = ["[f(", "x=1, t", "='a' ", "'b', ", "u={'v': (1,)})]"]
    segments = [reader.push(piece) for piece in pieces]
    assert segments == [
        [],
        [Call("f", '{"x": 1')],
        [],
        [Arguments(', "t": "ab"')],
        [Arguments(', "u": {"v": [1]}}')],
    ]


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
    '{"function": ' * 20_000,
]


@pytest.mark.parametrize("family", FAMILIES)
def test_13_no_output_of_a_model_takes_long_to_read(family: str) -> None:
    """Row 13 of the known failures: parsers that go back over an output took seconds for 150 characters."""
    scanner = FAMILIES[family]
    for text in HOSTILE:
        for begin in ("", scanner.mark):
            start = time.process_time()
            pieces = [(begin + text)[place : place + 4] for place in range(0, len(begin + text), 4)]
            assert "".join(map(str, read(AnswerForm(scanner), *pieces))) == begin + text
            assert time.process_time() - start < 1.0, (begin, text[:20])


LONG_ARGUMENTS = ("\n" * 50_000, '"' + "\n\\" * 25_001, '"a": "b", ' * 5_000, "[" * 60)


@pytest.mark.parametrize("family", FAMILIES)
def test_13_no_arguments_take_long_to_read(family: str) -> None:
    front = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS]["}.get(family, "")
    name = "arguments" if front else "parameters"
    for text in LONG_ARGUMENTS:
        whole = front + f'{{"name": "f", "{name}": {{' + text
        for size in (1, len(whole)):
            start = time.process_time()
            pieces = [whole[place : place + size] for place in range(0, len(whole), size)]
            [call] = joined(read(AnswerForm(FAMILIES[family]), *pieces))
            assert isinstance(call, Call) and len(call.arguments) > len(text)
            assert time.process_time() - start < 2.0, (text[:20], size)
    if family == "pythonic":
        start = time.process_time()
        text = "[f(" + ", ".join(f"a{i}='{'b' * 20}'" for i in range(5_000)) + ")]"
        [call] = joined(read(AnswerForm(FAMILIES[family]), *text))
        assert isinstance(call, Call) and len(json.loads(call.arguments)) == 5_000
        assert time.process_time() - start < 2.0


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
