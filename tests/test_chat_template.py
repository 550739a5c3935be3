"""Chat templates: rendered as transformers renders them, found where it finds them, and ended whatever they do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import processor_seconds
from oracle.chat_cases import CONVERSATIONS, NOW, SPECIAL_TOKENS, TEMPLATES, read_golden

from infernum.chat.files import TemplateFile, find_templates
from infernum.chat.template import ChatTemplate
from infernum.errors import ConfigError, InfernumError, RequestError

GOLDEN = read_golden()
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def template() -> Iterator[Callable[..., ChatTemplate]]:
    """`template(text, tool_use=text)`: the chat templates of a model."""
    made: list[ChatTemplate] = []

    def make(text: str, **more: str) -> ChatTemplate:
        files = {
            name: TemplateFile(text, f"{name}.jinja") for name, text in {"default": text, **more}.items()
        }
        made.append(ChatTemplate(files, SPECIAL_TOKENS))
        return made[-1]

    yield make
    for each in made:
        each.close()


def rendered(chat: ChatTemplate, title: str) -> str:
    case = CONVERSATIONS[title]
    return chat.render(
        case.messages,
        tools=case.tools,
        add_generation_prompt=case.add_generation_prompt,
        continue_final_message=case.continue_final_message,
        arguments=case.arguments,
        now=NOW,
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_as_in_transformers(name: str, template: Callable[..., ChatTemplate]) -> None:
    assert GOLDEN[name].keys() == CONVERSATIONS.keys()
    chat = template(TEMPLATES[name])
    for title, expected in GOLDEN[name].items():
        if isinstance(expected, str):
            assert rendered(chat, title) == expected, title
        else:
            with pytest.raises(RequestError) as refusal:
                rendered(chat, title)
            reason = expected["refuses"].rstrip(".")
            assert reason.startswith("continue_final_message") or reason in str(refusal.value), title


def test_the_templates_are_many_and_each_renders_several_conversations() -> None:
    texts = [sum(isinstance(text, str) for text in by_title.values()) for by_title in GOLDEN.values()]
    assert len(texts) >= 30 and min(texts) > 5 and sum(texts) > 400


ATTACKS = {
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attributes by a format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "globals of a function": "{{ raise_exception.__globals__.os }}",
    "modules of jinja": "{{ cycler.__init__.__globals__.os.popen('true').read() }}",
    "attributes of a namespace": "{% set ns = namespace(__class__=1) %}",
    "a change of the messages": "{{ messages.append(1) }}",
    "a file": "{% include '/etc/passwd' %}",
    "a refusal": "{{ raise_exception('not\nso') }}",
    "a division": "{{ 1 // 0 }}",
    "no end": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a large range": "{% for i in range(10**9) %}{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "gigabytes by *": "{{ 'a' * 10**10 }}",
    "gigabytes by %": "{{ '%9999999999d' % 1 }}",
    "gigabytes by format": "{{ '{:>9999999999}'.format(1) }}",
    "gigabytes by join": "{{ (['a' * 9999] * 9999999) | join }}",
    "gigabytes by replace": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "gigabytes by center": "{{ 'a' | center(10**10) }}",
    "gigabytes by tojson": "{{ messages | tojson(indent=10**10) }}",
    "gigabytes by ~": "{% set n = namespace(a='a') %}{% for i in range(99) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
    "gigabytes by +": "{% set n = namespace(a=[1]) %}{% for i in range(99) %}{% set n.a = n.a + n.a %}{% endfor %}",
    "a long output": "{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}",
    "a large number": "{{ 9**(9**9) }}",
    "a large number at compile time": "{% if 9**(9**9) == 1 %}{% endif %}",
    "nested lists": "{{ [[[[[[1] * 99] * 99] * 99] * 99] * 99] | string }}",
    "half a template": "{% for message in messages %}",
    "words of its own": "{{ lipsum(n=10**9) }}",
}


@pytest.fixture(scope="module")
def start_seconds() -> float:
    """The processor time of a process that renders hardly anything."""
    before = processor_seconds()
    chat = ChatTemplate({"default": TemplateFile("x", "default.jinja")}, {})
    chat.render(HELLO)
    chat.close()
    return processor_seconds() - before


@pytest.mark.parametrize("attack", ATTACKS)
def test_whatever_a_template_does_ends_within_a_second_with_one_line(
    attack: str, template: Callable[..., ChatTemplate], start_seconds: float
) -> None:
    before = processor_seconds()
    chat = template(ATTACKS[attack])
    with pytest.raises(InfernumError) as refusal:
        chat.render(HELLO)
    chat.close()
    assert processor_seconds() - before - start_seconds < 1.0
    assert "\n" not in str(refusal.value)
    assert "default.jinja" in str(refusal.value) or attack == "a refusal"


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''|attr('__class__') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ messages|map(attribute='__len__')|join }}",
    ],
)
def test_an_attribute_of_python_is_undefined(text: str, template: Callable[..., ChatTemplate]) -> None:
    assert template(text).render(HELLO) == ""


def test_a_template_is_ended_off_the_main_thread_too_and_the_next_conversation_is_rendered(
    template: Callable[..., ChatTemplate],
) -> None:
    chat = template(
        "{% for i in range(messages[0].content | int) %}{% for j in range(99999) %}{% endfor %}{% endfor %}ok"
    )
    results: list[str | Exception] = []

    def render(count: str) -> None:
        try:
            results.append(chat.render([{"role": "user", "content": count}]))
        except InfernumError as error:
            results.append(error)

    for count in ("0", "99999", "1"):
        thread = threading.Thread(target=render, args=(count,))
        thread.start()
        thread.join()
    assert [isinstance(result, RequestError) for result in results] == [False, True, False]
    assert "half a second" in str(results[1])


def test_several_threads_may_render_at_once(template: Callable[..., ChatTemplate]) -> None:
    chat = template("{{ messages[0].content }}")
    texts: dict[int, str] = {}

    def render(number: int) -> None:
        texts[number] = chat.render([{"role": "user", "content": f"{number}" * 9999}])

    threads = [threading.Thread(target=render, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: f"{number}" * 9999 for number in range(8)}


def test_the_process_that_renders_ends_with_the_template(template: Callable[..., ChatTemplate]) -> None:
    chat = template("{{ messages[0].content }}")
    chat.render(HELLO)
    process = chat._process._process._process
    assert process is not None and process.poll() is None
    chat.close()
    assert process.poll() is not None
    assert chat.render(HELLO) == "Hello"


def test_a_template_of_its_own_serves_conversations_with_tools(template: Callable[..., ChatTemplate]) -> None:
    chat = template("plain", tool_use="tools")
    assert chat.render(HELLO) == "plain"
    assert chat.render(HELLO, tools=[]) == "tools"
    named = ChatTemplate({"rag": TemplateFile("x", "config")}, {})
    with pytest.raises(
        ConfigError, match="config: none of the chat templates rag is called default; give one"
    ):
        named.render(HELLO)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"messages": []}, r"messages is \[\]; give a list of messages"),
        ({"messages": "Hello"}, "messages is 'Hello'; give a list"),
        ({"messages": ["Hello"]}, r"messages\[0\] is 'Hello'; give \{\"role\": …"),
        ({"messages": [{"content": "Hello"}]}, r"messages\[0\] is .* where the role is \"system\""),
        ({"messages": [{"role": "user", "content": b"raw"}]}, "must be values of JSON .*bytes"),
        ({"tools": "canto"}, "tools is 'canto'; give a list of JSON schemas"),
        ({"tools": [print]}, "tools is .*; give a list of JSON schemas"),
        (
            {"arguments": {"chat_template": "{{ 1 }}"}},
            "chat_template is no argument of a template; leave it out",
        ),
        ({"arguments": {"messages": []}}, "messages is no argument of a template; leave it out"),
        ({"arguments": "fast"}, "template_args is 'fast'; give names with values"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "exclude each other"),
        (
            {"continue_final_message": "reasoning_content"},
            "default.jinja|has no reasoning_content to continue",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}], "continue_final_message": True},
            "has no content to continue",
        ),
    ],
)
def test_a_mistake_of_the_caller_is_one_line(
    options: dict[str, Any], reason: str, template: Callable[..., ChatTemplate]
) -> None:
    chat = template("{{ messages[0].content }}")
    with pytest.raises(RequestError, match=reason):
        chat.render(**{"messages": HELLO, **options})


def test_the_callers_messages_stay_as_they_are(template: Callable[..., ChatTemplate]) -> None:
    parts = [{"type": "text", "text": "a"}]
    messages = [{"role": "user", "content": parts, "thinking": "b", "name": None}]
    before = json.dumps(messages)
    template("{{ messages[0].content[0].text }}").render(messages, continue_final_message=True)
    assert json.dumps(messages) == before


@pytest.mark.parametrize(
    ("text", "token"),
    [
        (TEMPLATES["chatml"], "<|im_end|>"),
        (TEMPLATES["headers"], "<|eot_id|>"),
        (TEMPLATES["turns"], "<end_of_turn>"),
        (TEMPLATES["inst"], "</s>"),
        (TEMPLATES["upper_tokens"], "<|END_OF_TURN_TOKEN|>"),
        (TEMPLATES["open_turns"], None),
        ("{{ raise_exception('no') }}", None),
    ],
)
def test_the_end_of_a_turn_is_the_special_token_behind_the_answer(
    text: str, token: str | None, template: Callable[..., ChatTemplate]
) -> None:
    special = [
        "<|im_start|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<end_of_turn>",
        "<s>",
        "</s>",
        "<|END_OF_TURN_TOKEN|>",
    ]
    assert template(text).end_of_turn(special) == token


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def texts(folder: Path, path: Path | None = None) -> dict[str, str]:
    return {name: file.text for name, file in find_templates(folder, "m", path).items()}


def test_templates_are_found_where_transformers_finds_them(tmp_path: Path) -> None:
    write(tmp_path / "tokenizer_config.json", {"chat_template": "one"})
    assert texts(tmp_path) == {"default": "one"}
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    write(tmp_path / "tokenizer_config.json", {"chat_template": named})
    assert texts(tmp_path) == {"default": "a", "tool_use": "b"}
    write(tmp_path / "additional_chat_templates" / "rag.jinja", "r")
    assert texts(tmp_path) == {"rag": "r"}
    write(tmp_path / "chat_template.jinja", "d\n")
    assert texts(tmp_path) == {"default": "d\n", "rag": "r"}
    write(tmp_path / "mine", "m")
    assert texts(tmp_path, tmp_path / "mine") == {"default": "m"}


@pytest.mark.parametrize("value", [3, [3], [{"name": "default"}], {"default": 3}])
def test_a_chat_template_that_is_no_text_is_refused(value: object, tmp_path: Path) -> None:
    write(tmp_path / "tokenizer_config.json", {"chat_template": value})
    with pytest.raises(ConfigError, match=r"tokenizer_config.json: chat_template must be a text"):
        find_templates(tmp_path, "m")


def test_a_model_without_a_template_and_a_missing_file_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no chat template.*give one with --chat-template FILE"):
        find_templates(tmp_path, "m")
    with pytest.raises(ConfigError, match="mine: no such file"):
        find_templates(tmp_path, "m", tmp_path / "mine")
