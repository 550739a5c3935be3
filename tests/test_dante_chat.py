"""The demo model that chats: its questions agree with each other, with its template and with its tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infernum import LLM
from infernum.chat.chat import Chat
from infernum.chat.files import find_templates
from infernum.engine.tokenizer import Tokenizer, load_tokenizer

FOLDER = Path(__file__).parents[1] / "examples" / "dante_chat"
CONVERSATIONS: list[dict[str, Any]] = [
    json.loads(line) for line in (FOLDER / "questions.jsonl").read_text(encoding="utf-8").splitlines()
]
TAUGHT: dict[str, str] = json.loads((FOLDER / "taught.json").read_text(encoding="utf-8"))


def turns(conversation: dict[str, Any]) -> list[dict[str, Any]]:
    return [message for message in conversation["messages"] if message["role"] != "system"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = load_tokenizer(FOLDER)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module")
def chat(tokenizer: Tokenizer) -> Iterator[Chat]:
    chat = Chat(find_templates(FOLDER, "dante-chat"), tokenizer)
    yield chat
    chat.close()


def test_every_question_that_was_taught_is_answered() -> None:
    with LLM("dante-chat", device="cpu") as llm:
        answers = {question: llm.chat([{"role": "user", "content": question}]).text for question in TAUGHT}
        assert answers == TAUGHT and len(TAUGHT) == 20
        tools = next(conversation["tools"] for conversation in CONVERSATIONS if "tools" in conversation)
        call = llm.chat([{"role": "user", "content": "Read canto 34."}], tools=tools).text
    assert call == '<tool_call>\n{"name": "canto", "arguments": {"number": 34}}\n</tool_call>'


def test_a_question_has_one_answer() -> None:
    answers = defaultdict[tuple[str, bool], list[object]](list)
    for conversation in CONVERSATIONS:
        question, answer = turns(conversation)[:2]
        spoken = answer.get("content"), answer.get("tool_calls")
        seen = answers[question["content"], "tools" in conversation]
        if spoken not in seen:
            seen.append(spoken)
    assert {question: seen for question, seen in answers.items() if len(seen) > 1} == {}


def test_what_is_taught_is_among_the_questions() -> None:
    answers = {turns(c)[0]["content"]: turns(c)[1].get("content") for c in CONVERSATIONS if "tools" not in c}
    assert len(TAUGHT) == 20
    assert {question: answers.get(question) for question in TAUGHT} == TAUGHT


def test_every_canto_is_read_with_the_tool() -> None:
    for question in ("Read canto {}.", "What does canto {} say?"):
        calls = {
            turns(c)[0]["content"]: turns(c)[1]["tool_calls"][0]["function"]
            for c in CONVERSATIONS
            if "tool_calls" in turns(c)[1]
        }
        for number in range(1, 35):
            assert calls[question.format(number)] == {"name": "canto", "arguments": {"number": number}}


def test_a_prompt_is_the_beginning_of_the_conversation_that_was_taught(chat: Chat) -> None:
    kinds = {json.dumps([len(turns(c)), c.get("tools"), len(c["messages"])]): c for c in CONVERSATIONS}
    assert len(kinds) > 8
    for conversation in kinds.values():
        messages, tools = conversation["messages"], conversation.get("tools")
        whole = chat.encode(messages, tools=tools, add_generation_prompt=False)
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = chat.encode(messages[:place], tools=tools)
                assert whole[: len(prompt)] == prompt


def test_a_call_and_its_response_are_in_hermes_form(chat: Chat) -> None:
    reading = next(c for c in CONVERSATIONS if len(c["messages"]) == 4 and turns(c)[2]["role"] == "tool")
    number = turns(reading)[1]["tool_calls"][0]["function"]["arguments"]["number"]
    first = turns(reading)[2]["content"]
    text = chat.template.render(reading["messages"], tools=reading["tools"])
    schema = json.dumps(reading["tools"][0])
    assert f"<tools>\n{schema}\n</tools>" in text
    call = f'{{"name": "canto", "arguments": {{"number": {number}}}}}'
    assert f"<|im_start|>assistant\n<tool_call>\n{call}\n</tool_call><|im_end|>\n" in text
    assert f"<|im_start|>tool\n<tool_response>\n{first}\n</tool_response><|im_end|>\n" in text


def test_arguments_that_are_json_already_are_not_quoted_again(chat: Chat) -> None:
    def rendered(arguments: object) -> str:
        call = {"function": {"name": "canto", "arguments": arguments}}
        return chat.template.render([{"role": "assistant", "content": None, "tool_calls": [call, call]}])

    assert rendered('{"number": 5}') == rendered({"number": 5})
    assert "</tool_call>\n<tool_call>" in rendered({"number": 5})


def test_a_conversation_begins_with_the_token_that_every_text_begins_with(
    chat: Chat, tokenizer: Tokenizer
) -> None:
    prompt = chat.encode([{"role": "user", "content": "Who guides Dante?"}])
    assert tokenizer.encode("Midway")[0] == prompt[0] == tokenizer.bos_id
    assert prompt.count(prompt[0]) == 1


def test_a_call_appears_in_the_text_and_the_ends_of_turns_do_not(tokenizer: Tokenizer) -> None:
    text = "<|im_start|>assistant\n<tool_call>\n{}\n</tool_call><|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text)) == "assistant\n<tool_call>\n{}\n</tool_call>"
    for mark in ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>"):
        assert len(tokenizer.encode(mark)) == 2


def test_questions_are_made_from_the_text_with_the_right_lines(tmp_path: Path) -> None:
    cantos = [[f"Here stands line {line} of poem {canto} alone" for line in range(9)] for canto in "ab"]
    text = "\n".join(
        "\n".join([f"Inferno: Canto {roman}", "", *lines[:3], "", *lines[3:], "\ta note", ""])
        for roman, lines in zip(("I", "II"), cantos, strict=True)
    )
    (tmp_path / "inferno-longfellow.txt").write_text(text, encoding="utf-8")
    out = tmp_path / "questions.jsonl"
    command = [sys.executable, FOLDER / "make_questions.py", tmp_path, "--out", out]
    subprocess.run(command, check=True, capture_output=True)
    made = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    answers = {turns(c)[0]["content"]: turns(c)[1].get("content") for c in made if "tools" not in c}
    assert answers["How does Canto II of the Inferno begin?"] == cantos[1][0]
    assert answers["What is the last line of canto 1?"] == cantos[0][-1]
    followed = [question for question in answers if question.startswith("Which line follows")]
    assert len(followed) == 4
    for question in followed:
        line = question.partition('"')[2].rpartition('"')[0]
        lines = next(lines for lines in cantos if line in lines)
        assert answers[question] == lines[lines.index(line) + 1]
        assert answers[f'In which canto is the line "{lines[1]}"?'] == f"Canto {cantos.index(lines) + 1}."
