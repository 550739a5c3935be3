"""The conversations in which every template of `chat_templates` is rendered, by transformers and by us.

The templates are written for these tests, with what published ones use: each conversation is rendered by each
template, and where a template refuses a conversation, both must refuse it.
"""

import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

TEMPLATES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted((Path(__file__).parent / "chat_templates").glob("*.jinja"))
}
GOLDEN = Path(__file__).parent / "goldens" / "chat.json"
"""What transformers renders: {template: {conversation: text}}; {"refuses": message} in place of a text."""

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
NOW = datetime(2026, 3, 25, 12, 30)  # as a template sees it: the local time


@dataclass(frozen=True)
class Conversation:
    """Messages, and the options by which they are rendered."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool | str = False
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place, in °C & mm.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "A town"},
                "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
                "days": {"type": "array", "items": {"type": "integer"}},
                "detail": {
                    "type": "object",
                    "properties": {"wind": {"type": "boolean"}, "note": {"type": ["string", "null"]}},
                    "required": ["wind"],
                },
            },
            "required": ["place"],
        },
        "return": {"type": "number"},
    },
}
CANTO = {
    "type": "function",
    "function": {
        "name": "canto",
        "description": "The text of a canto",
        "parameters": {
            "type": "object",
            "properties": {"number": {"type": "integer"}},
            "required": ["number"],
        },
    },
}


def _say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


SYSTEM, USER = _say("system", "You are Virgil."), _say("user", "Where are we?")
ANSWER, MORE = _say("assistant", "In a dark wood."), _say("user", "Lead on, then!")
CALL = {"id": "abc123xyz", "type": "function", "function": {"name": "canto", "arguments": {"number": 3}}}
REASONED = "<think>\nHe asks for the gate.\n</think>\n\nThrough me the way."

CONVERSATIONS = {
    "question": Conversation([USER]),
    "system": Conversation([SYSTEM, USER]),
    "turns": Conversation([USER, ANSWER, MORE]),
    "complete": Conversation([SYSTEM, USER, ANSWER, MORE, ANSWER], add_generation_prompt=False),
    "two questions": Conversation([USER, MORE]),
    "characters": Conversation(
        [
            _say("user", "  <b>\"Nel mezzo\"</b> & 'così' 🌲\n\n— ok?  "),
            _say("assistant", " {{ no }} \n"),
            MORE,
        ]
    ),
    "parts": Conversation(
        [
            _say(
                "user",
                [
                    {"type": "text", "text": "Look: "},
                    {"type": "image", "url": "x.png"},
                    {"type": "text", "text": " what?"},
                ],
            )
        ]
    ),
    "reasoning": Conversation(
        [USER, _say("assistant", "Hell.", reasoning="The gate says so."), MORE, _say("assistant", REASONED)],
        add_generation_prompt=False,
    ),
    "no thinking": Conversation(
        [SYSTEM, USER, _say("assistant", REASONED), MORE],
        arguments={
            "enable_thinking": False,
            "reasoning_effort": "low",
            "date_string": "25 Mar 1300",
            "cutoff": "1300",
            "controls": {"length": "short"},
        },
    ),
    "tools": Conversation([SYSTEM, USER], tools=[WEATHER, CANTO]),
    "tool calls": Conversation(
        [
            USER,
            _say("assistant", None, tool_calls=[CALL]),
            _say("tool", '{"text": "Per me si va"}', tool_call_id="abc123xyz", name="canto"),
            ANSWER,
            MORE,
        ],
        tools=[CANTO],
    ),
    "two calls": Conversation(
        [
            USER,
            _say("assistant", "", tool_calls=[CALL, CALL]),
            _say("tool", "3 < 4", tool_call_id="abc123xyz"),
            _say("tool", "two", tool_call_id="abc123xyz"),
        ],
        tools=[CANTO],
        arguments={"tools_in_user_message": False},
    ),
    "documents": Conversation(
        [USER],
        arguments={
            "documents": [
                {"title": "Inferno", "text": "Midway upon the journey\nof our life"},
                {"text": "short"},
            ]
        },
    ),
    "continued": Conversation(
        [USER, _say("assistant", "We are in ")], add_generation_prompt=False, continue_final_message=True
    ),
    "continued reasoning": Conversation(
        [USER, _say("assistant", "", reasoning_content="Let me see: ")],
        add_generation_prompt=False,
        continue_final_message="reasoning_content",
    ),
}


def read_golden() -> dict[str, dict[str, Any]]:
    """What transformers has rendered."""
    return json.loads(GOLDEN.read_text(encoding="utf-8"))
