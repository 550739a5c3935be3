"""Calls of functions and reasoning in the answers of the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_models import write_chat_model
from oracle.chat_cases import CANTO, WEATHER
from serving import Reply, RunningServer, running, start

from infernum import LLM

SHORT: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "canto",
        "parameters": {
            "properties": {"number": {"$ref": "#/$defs/number"}},
            "required": ["number"],
            "additionalProperties": False,
            "$defs": {"number": {"enum": [1, 2]}},
        },
    },
}
BRIEF: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["Hell", "Florence"]}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}
QUESTION = "Read canto 5."
CANTO_5 = (
    "Inferno: Canto V\n\nThus I descended out of the first circle\nDown to the second, that less space begirds,\n"
    "And so much greater dole, that goads to wailing."
)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    yield from running()


def streamed(reply: Reply) -> dict[str, Any]:
    """The message of a stream, put together as clients do it: calls by their index."""
    message: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
    calls: dict[int, dict[str, Any]] = {}
    for event in reply.events:
        for choice in event["choices"]:
            delta = choice["delta"]
            for name in ("content", "reasoning", "reasoning_content"):
                if name in delta:
                    message[name] = message.get(name, "") + delta[name]
            for call in delta.get("tool_calls", ()):
                first = calls.setdefault(call["index"], {**call, "function": {"name": "", "arguments": ""}})
                for name, text in call["function"].items():
                    first["function"][name] += text
    if calls:
        message["content"] = message["content"] or None
        message["tool_calls"] = [calls[index] for index in range(len(calls))]
        for call in message["tool_calls"]:
            del call["index"]
    return message


def named(function: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": function}}


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    calls = [
        {name: value for name, value in call.items() if name != "id"}
        for call in message.get("tool_calls", ())
    ]
    return {**message, "tool_calls": calls}


def test_a_function_is_called_and_its_result_answered(server: RunningServer) -> None:
    tools = [CANTO]
    choice = server.chat(QUESTION, tools=tools).json["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] is None
    [call] = message["tool_calls"]
    assert call["type"] == "function" and call["function"] == {"name": "canto", "arguments": '{"number": 5}'}
    conversation = [
        {"role": "user", "content": QUESTION},
        message,
        {"role": "tool", "tool_call_id": call["id"], "content": CANTO_5},
    ]
    reply = server.ask("/v1/chat/completions", {"messages": conversation, "tools": tools, "temperature": 0})
    choice = reply.json["choices"][0]
    assert choice["message"]["content"].startswith("Canto 5 begins:") and choice["finish_reason"] == "stop"
    assert "tool_calls" not in choice["message"]


def test_a_stream_has_the_calls_of_the_whole_answer(server: RunningServer) -> None:
    fields: dict[str, Any] = {"tools": [CANTO, WEATHER], "n": 1}
    whole = server.chat(QUESTION, **fields).json["choices"][0]
    reply = server.chat(QUESTION, stream=True, **fields)
    assert without_ids(streamed(reply)) == without_ids(whole["message"])
    reasons = [choice["finish_reason"] for event in reply.events for choice in event["choices"]]
    assert [reason for reason in reasons if reason] == [whole["finish_reason"]] == ["tool_calls"]
    assert "<tool_call>" not in reply.body.decode()


def test_the_template_sees_the_tools_and_calls_as_in_python(server: RunningServer) -> None:
    call = {
        "id": "abc123xyz",
        "type": "function",
        "function": {"name": "canto", "arguments": '{"number": 3}'},
    }
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "text", "tool_call_id": "abc123xyz"},
    ]
    with LLM("dante-chat", device="cpu") as llm:
        parsed = {**call, "function": {"name": "canto", "arguments": {"number": 3}}}
        expected = llm.encode_chat(
            [messages[0], {**messages[1], "tool_calls": [parsed]}, messages[2]], tools=[CANTO]
        )
    assert server.ask("/tokenize", {"messages": messages, "tools": [CANTO]}).json["tokens"] == expected


def test_no_call_where_none_is_allowed(server: RunningServer) -> None:
    plain = server.chat(QUESTION).json["choices"][0]
    forbidden = server.chat(QUESTION, tools=[CANTO], tool_choice="none").json["choices"][0]
    assert forbidden["message"] == plain["message"] and forbidden["finish_reason"] == "stop"


def test_a_call_that_is_cut_is_text(server: RunningServer) -> None:
    for stream in (False, True):
        reply = server.chat(QUESTION, tools=[CANTO], max_tokens=8, stream=stream)
        message = streamed(reply) if stream else reply.json["choices"][0]["message"]
        assert message["content"].startswith("<tool_call>") and "tool_calls" not in message
        last = reply.events[-1] if stream else reply.json
        assert last["choices"][0]["finish_reason"] == "length"


def test_log_probabilities_of_a_call_are_those_of_all_its_tokens(server: RunningServer) -> None:
    fields: dict[str, Any] = {"tools": [CANTO], "logprobs": True}
    body = server.chat(QUESTION, **fields).json
    content = body["choices"][0]["logprobs"]["content"]
    assert len(content) == body["usage"]["completion_tokens"]
    events = server.chat(QUESTION, stream=True, **fields).events
    parts = [choice["logprobs"] for event in events for choice in event["choices"]]
    assert [place for part in parts if part for place in part["content"]] == content


def test_marks_of_calls_are_read_where_they_are_special_tokens(tmp_path: Path) -> None:
    """A family by name, whose marks the tokenizer hides; where no tools are offered, they stay hidden."""
    body = '[{"name": "canto", "arguments": {"number": 3}}, {"name": "now", "arguments": {}}]'
    folder = write_chat_model(tmp_path / "model", ["[TOOL_CALLS]", body], special=("[TOOL_CALLS]",))
    server = start("--tool-call-parser", "mistral", model=str(folder))
    assert server.chat("Hello").json["choices"][0]["message"]["content"] == body
    message = server.chat("Hello", tools=[CANTO]).json["choices"][0]["message"]
    functions = [call["function"] for call in message["tool_calls"]]
    assert [(f["name"], f["arguments"]) for f in functions] == [("canto", '{"number": 3}'), ("now", "{}")]
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    reply = server.chat("Hello", tools=[CANTO], stream=True)
    assert without_ids(streamed(reply)) == without_ids(message)
    one = server.chat("Hello", tools=[CANTO], parallel_tool_calls=False).json["choices"][0]["message"]
    assert [call["function"]["name"] for call in one["tool_calls"]] == ["canto"]
    assert server.stop() == 0


def test_a_model_whose_syntax_is_not_known_refuses_tools(tmp_path: Path) -> None:
    server = start(model=str(write_chat_model(tmp_path / "model", "abc")))
    error = server.chat("Hello", tools=[CANTO]).error
    assert error["param"] == "tools" and "--tool-call-parser hermes or" in error["message"]
    assert server.chat("Hello", tools=[CANTO], tool_choice="none").status == 200
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [{"type": "retrieval"}]}, "tools", "retrieval"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools", "name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
            "tools",
            "'array'",
        ),
        ({"tools": [CANTO], "tool_choice": "always"}, "tool_choice", "always"),
        ({"tool_choice": "required"}, "tool_choice", "give tools"),
        (
            {"tools": [CANTO], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice",
            "'canto'",
        ),
        ({"functions": [{"name": "f"}]}, "functions", "tools"),
    ],
)
def test_a_wrong_tool_is_named(fields: dict[str, Any], param: str, words: str, server: RunningServer) -> None:
    reply = server.chat(QUESTION, **fields)
    assert reply.status == 400
    assert reply.error["param"] == param and words in reply.error["message"], reply.error


ASSISTANT = "{% if add_generation_prompt %}<|im_start|>assistant\n{{ open }}{% endif %}"
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def thinking_model(folder: Path, answer: list[str], *, opened: bool) -> RunningServer:
    """A model that writes <think> itself, or whose prompts end with it; the marks are special tokens."""
    answer = answer if opened else ["<think>", *answer]
    write_chat_model(folder, answer, special=("<think>", "</think>"))
    opening = "<think>\n" if opened else ""
    template = f'{{% set open = "{opening}" %}}{{# <think> #}}{TURNS}{ASSISTANT}'
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return start("--tool-call-parser", "hermes", model=str(folder))


@pytest.mark.parametrize("opened", [False, True])
def test_a_model_thinks_before_an_answer_that_has_a_form(opened: bool, tmp_path: Path) -> None:
    server = thinking_model(tmp_path / "model", [*"so", "</think>", "{}"], opened=opened)
    form = {"type": "json_object"}
    for fields in ({"response_format": form}, {"response_format": form, "tools": [CANTO]}):
        message = server.chat("Hello", **fields).json["choices"][0]["message"]
        assert (message["reasoning"], message["content"]) == ("so", "{}")
    fields = {"tools": [BRIEF], "tool_choice": "required", "parallel_tool_calls": False}
    message = server.chat("Hello", **fields).json["choices"][0]["message"]
    assert message["reasoning"] == "so" and message["tool_calls"][0]["function"]["name"] == "weather"
    assert server.stop() == 0


@pytest.mark.parametrize("opened", [False, True])
def test_reasoning_has_fields_of_its_own(opened: bool, tmp_path: Path) -> None:
    server = thinking_model(tmp_path / "model", [*"He ask", "</think>", *"INFRO"], opened=opened)
    for fields in ({}, {"logprobs": True}, {"max_tokens": 5}):
        choice = server.chat("Hello", **fields).json["choices"][0]
        message = choice["message"]
        assert message["reasoning"] == message["reasoning_content"]
        reply = server.chat("Hello", stream=True, **fields)
        assert streamed(reply) == message
        if "max_tokens" not in fields:
            assert (message["reasoning"], message["content"]) == ("He ask", "INFRO")
    assert server.stop() == 0


def test_an_answer_calls_where_the_request_says_that_it_must(server: RunningServer) -> None:
    """Whatever is asked, at any temperature: calls of functions that may be called, with arguments of their schemas."""
    for choice, names in (("required", {"canto", "weather"}), (named("weather"), {"weather"})):
        for seed in range(3):
            fields: dict[str, Any] = {
                "tools": [SHORT, BRIEF],
                "tool_choice": choice,
                "seed": seed,
                "temperature": 1.5,
            }
            answer = server.chat("Who guides Dante?", **fields).json["choices"][0]
            assert answer["finish_reason"] == "tool_calls" and answer["message"]["content"] is None
            calls = [call["function"] for call in answer["message"]["tool_calls"]]
            assert calls and {call["name"] for call in calls} <= names
            for call in calls:
                arguments = json.loads(call["arguments"])
                assert set(arguments) == ({"number"} if call["name"] == "canto" else {"place"})
                assert arguments.get("number") in (1, 2, None) and arguments.get("place") in (
                    "Hell",
                    "Florence",
                    None,
                )
            if choice != "required":
                assert len(calls) == 1
            reply = server.chat("Who guides Dante?", stream=True, **fields)
            assert without_ids(streamed(reply)) == without_ids(answer["message"])
    usual = server.chat(QUESTION, tools=[CANTO], tool_choice="required").json["choices"][0]["message"]
    assert usual["tool_calls"][0]["function"] == {"name": "canto", "arguments": '{"number": 5}'}


def test_an_answer_has_the_form_that_is_asked_for_or_calls(server: RunningServer) -> None:
    schema = {
        "type": "object",
        "properties": {"guide": {"type": "string", "maxLength": 20}},
        "required": ["guide"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "guide", "schema": schema}}
    message = server.chat(QUESTION, tools=[CANTO], response_format=form).json["choices"][0]["message"]
    assert message["tool_calls"][0]["function"] == {"name": "canto", "arguments": '{"number": 5}'}
    fields: dict[str, Any] = {"tools": [CANTO], "response_format": form, "tool_choice": "none"}
    message = server.chat(QUESTION, **fields).json["choices"][0]["message"]
    assert set(json.loads(message["content"])) == {"guide"}


def test_the_names_of_parsers_are_those_of_the_families() -> None:
    import click

    from infernum.chat.calls.families import FAMILIES
    from infernum.cli.serve_command import command

    option = next(each for each in command.params if each.name == "tool_call_parser")
    assert isinstance(option.type, click.Choice)
    assert set(option.type.choices) == {"auto", "none", *FAMILIES}
