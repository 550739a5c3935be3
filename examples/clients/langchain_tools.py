"""A model that calls a function, with LangChain: `pip install langchain-openai`, and `infernum serve` running.

`tool_choice` forces the call, so that the demo model makes one, too; its arguments follow the function's schema.
"""

from __future__ import annotations

import os
from typing import Any

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def first_line(canto: int) -> str:
    """The first line of a canto of the Inferno."""
    return {1: "Midway upon the journey of our life"}.get(canto, "This canto is not here.")


client: Any = ChatOpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key="none",  # pyright: ignore[reportArgumentType]
    model="dante-chat",
    temperature=0,
)
answer = client.bind_tools([first_line], tool_choice="first_line").invoke("How does canto 1 begin?")
for call in answer.tool_calls:
    print(call["name"], call["args"], "->", first_line.invoke(call["args"]))
