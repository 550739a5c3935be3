"""A chat, streamed, with OpenAI's client: `pip install openai`, and `infernum serve dante-chat` running."""

from __future__ import annotations

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
model = client.models.list().data[0].id
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Who guides Dante through Hell?"}],
    temperature=0,
    stream=True,
)
for event in stream:
    print(event.choices[0].delta.content or "", end="", flush=True)
print()
