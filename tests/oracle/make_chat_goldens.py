"""Render the templates of `chat_cases` with transformers, into goldens/chat.json. Run by make_goldens."""

import json
from datetime import datetime
from typing import Any

from .chat_cases import CONVERSATIONS, GOLDEN, NOW, SPECIAL_TOKENS, TEMPLATES


class _Datetime(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return NOW


def make_chat_goldens() -> None:
    """Write goldens/chat.json anew."""
    import transformers
    from jinja2.exceptions import TemplateError
    from tokenizers import Tokenizer, models
    from transformers.utils import chat_template_utils

    chat_template_utils.datetime = _Datetime
    backend = Tokenizer(models.BPE())
    rendered: dict[str, dict[str, Any]] = {}
    for name, template in TEMPLATES.items():
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, chat_template=template, **SPECIAL_TOKENS
        )
        rendered[name] = {}
        for title, conversation in CONVERSATIONS.items():
            try:
                text: Any = tokenizer.apply_chat_template(
                    conversation.messages,
                    tools=conversation.tools,
                    add_generation_prompt=conversation.add_generation_prompt,
                    continue_final_message=conversation.continue_final_message,
                    tokenize=False,
                    **conversation.arguments,
                )
            except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
                text = {"refuses": str(error)}
            rendered[name][title] = text
    texts = sum(isinstance(text, str) for by_title in rendered.values() for text in by_title.values())
    content = json.dumps(rendered, ensure_ascii=False, indent=1) + "\n"
    GOLDEN.write_text(content, encoding="utf-8")
    print(f"chat: {texts} texts of {len(TEMPLATES)} templates, transformers {transformers.__version__}")
