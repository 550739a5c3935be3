"""`LLM.chat`: conversations as tokens, BOS exactly once, and answers that end where the template ends a turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chat_models import CONTEXT, write_chat_model
from oracle.chat_cases import TEMPLATES
from test_tokenizer import byte_level, sentencepiece
from tokenizers import AddedToken, processors

from infernum import LLM, SamplingParams
from infernum.chat.chat import Chat
from infernum.chat.files import TemplateFile
from infernum.engine.tokenizer import Tokenizer
from infernum.errors import ConfigError, RequestError

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """A model that answers "Salve!"."""
    with LLM(write_chat_model(tmp_path_factory.mktemp("chat"), "Salve!"), "cpu") as llm:
        yield llm


@pytest.fixture
def chat() -> Iterator[Callable[..., Chat]]:
    """`chat(template, tokenizer)`: a conversation with these."""
    made: list[Chat] = []

    def make(template: str, tokenizer: Tokenizer) -> Chat:
        made.append(Chat({"default": TemplateFile(template, "t.jinja")}, tokenizer))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_an_answer_ends_where_the_template_ends_a_turn(llm: LLM) -> None:
    answer = llm.chat(HELLO)
    assert (answer.text, answer.finish_reason) == ("Salve!", "stop")
    assert llm.tokenizer is not None and llm.tokenizer.special[answer.tokens[-1]] == "<|im_end|>"
    assert llm.generate("\n", SamplingParams(max_tokens=8, temperature=0))[0].text.startswith("Salve!")


def test_an_answer_comes_in_events_with_the_same_text(llm: LLM) -> None:
    events = list(llm.stream_chat(HELLO, SamplingParams(temperature=0)))
    assert "".join(event.text for event in events) == "Salve!"
    assert [event.finish_reason for event in events] == [None] * 6 + ["stop"]


def test_ignored_end_tokens_are_ignored_in_a_chat_too(llm: LLM) -> None:
    answer = llm.chat(HELLO, SamplingParams(max_tokens=20, ignore_eos=True))
    assert (len(answer.tokens), answer.finish_reason) == (20, "length")


def test_stop_tokens_of_the_caller_count_as_well(llm: LLM) -> None:
    stop = llm.encode("v")[0][0]
    assert llm.chat(HELLO, SamplingParams(stop_token_ids=(stop,), temperature=0)).text == "Sal"


def test_an_answer_is_as_long_as_the_context_has_room_for(tmp_path: Path) -> None:
    with LLM(write_chat_model(tmp_path, "abc", endless=True), "cpu", max_model_len=64) as llm:
        answer = llm.chat(HELLO)
        assert len(llm.encode_chat(HELLO)) + len(answer.tokens) == 64
        assert (answer.text[:6], answer.finish_reason) == ("abcabc", "length")


def test_a_conversation_is_encoded_as_its_text_with_special_tokens(llm: LLM) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert llm.encode_chat(messages) == llm.encode(text)[0]
    assert llm.encode_chat(messages, add_generation_prompt=False) == llm.encode(text[:-22])[0]


def test_the_last_message_is_continued(llm: LLM) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Sal"}]
    assert llm.chat(messages, continue_final_message=True).text == "ve!"


def test_parts_of_text_are_joined_where_the_template_knows_no_parts(
    llm: LLM, chat: Callable[..., Chat]
) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    assert llm.encode_chat(parts) == llm.encode_chat([{"role": "user", "content": "Hel\nlo"}])
    with pytest.raises(RequestError, match=r"messages\[0\] has a part that is no text: .*image"):
        llm.encode_chat([{"role": "user", "content": [{"type": "image"}]}])
    tokenizer = Tokenizer(byte_level(adds_bos=False))
    assert tokenizer.decode(chat(TEMPLATES["parts"], tokenizer).encode(parts)) == "<|user|>Hello<|assistant|>"


def test_tools_and_template_arguments_reach_the_template(chat: Callable[..., Chat]) -> None:
    tokenizer = Tokenizer(byte_level(adds_bos=False))
    ids = chat("{{ tools | tojson }} {{ fast }}", tokenizer).encode(
        HELLO, tools=[{"type": "function"}], template_args={"fast": True}
    )
    assert tokenizer.decode(ids) == '[{"type": "function"}] True'


FAMILIES = {
    "llama": ("headers", "<|begin|>", True),
    "gemma": ("turns", "<bos>", True),
    "mistral": ("inst", "<s>", True),
    "cohere": ("upper_tokens", "<bos>", True),
    "without bos in the template": ("chatml", "<bos>", True),
    "qwen": ("hermes", None, False),
    "smollm": ("chatml_default_system", None, False),
}


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize("family", FAMILIES)
def test_bos_stands_in_front_exactly_once(
    family: str, make: Callable[..., object], chat: Callable[..., Chat]
) -> None:
    template, bos, adds = FAMILIES[family]
    backend = make(adds_bos=False)
    if bos is not None:
        backend.add_special_tokens([AddedToken(bos, normalized=False)])
        number = backend.token_to_id(bos)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, number)]
        )
    tokenizer = Tokenizer(backend, bos=bos, named={"bos_token": bos or "", "eos_token": "</s>"})
    turns = [*HELLO, {"role": "assistant", "content": "Salve"}, *HELLO]
    ids = chat(TEMPLATES[template], tokenizer).encode(turns)
    assert len(ids) > 10
    if adds:
        assert ids[0] == tokenizer.bos_id and ids.count(ids[0]) == 1
    else:
        assert tokenizer.bos_id is None and ids[0] == backend.encode("<", add_special_tokens=False).ids[0]


def test_both_front_tokens_of_glm_stand_once(chat: Callable[..., Chat]) -> None:
    backend = byte_level(adds_bos=False)
    backend.add_special_tokens([AddedToken("[gMask]"), AddedToken("<sop>")])
    front = [backend.token_to_id("[gMask]"), backend.token_to_id("<sop>")]
    backend.post_processor = processors.TemplateProcessing(
        single="[gMask] <sop> $A", special_tokens=[("[gMask]", front[0]), ("<sop>", front[1])]
    )
    ids = chat(TEMPLATES["open_turns"], Tokenizer(backend)).encode(HELLO)
    assert ids[:2] == front and not set(front) & set(ids[2:])


def test_no_end_token_stands_behind_a_conversation(chat: Callable[..., Chat]) -> None:
    tokenizer = Tokenizer(byte_level(adds_bos=False), eos="<eos>", add_eos=True)
    ids = chat(TEMPLATES["chatml"], tokenizer).encode(HELLO)
    assert tokenizer.eos_id not in ids


@pytest.mark.parametrize(
    ("messages", "options", "reason"),
    [
        ([{"role": "user", "content": "\ud800"}], {}, "the messages are not valid text"),
        (
            HELLO * CONTEXT,
            {},
            "leaves no room for a new one in the model's context of 1024 tokens; shorten it",
        ),
        (HELLO, {"template_args": {"chat_template": "{{ 1 }}"}}, "chat_template is no argument"),
    ],
)
def test_a_conversation_that_cannot_be_served_is_refused(
    messages: list[dict[str, str]], options: dict[str, object], reason: str, llm: LLM
) -> None:
    with pytest.raises(RequestError, match=reason):
        llm.chat(messages, **options)
    assert llm.chat(HELLO).text == "Salve!"


def test_an_option_that_there_is_not_is_refused(llm: LLM) -> None:
    with pytest.raises(TypeError, match="chat_template"):
        llm.chat(HELLO, chat_template="{{ 1 }}")


def test_wrong_roles_are_refused_by_the_template(tmp_path: Path) -> None:
    with (
        LLM(write_chat_model(tmp_path, "abc", template="inst"), "cpu") as llm,
        pytest.raises(
            RequestError, match="refuses these messages: The roles user and assistant must take turns"
        ),
    ):
        llm.chat(HELLO * 2)


def test_a_model_without_a_template_still_generates_and_takes_a_file(tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path / "model", "Salve!", template=None)
    with LLM(folder, "cpu") as llm:
        assert llm.generate("\n", SamplingParams(max_tokens=2, temperature=0))[0].text == "Sa"
        with pytest.raises(ConfigError, match=r"model: has no chat template.*--chat-template FILE"):
            llm.chat(HELLO)
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}\n\n\n", encoding="utf-8")
    with LLM(folder, "cpu", chat_template=file) as llm:
        assert llm.chat(HELLO).text == "Salve!"


def test_a_closed_model_does_not_chat(tmp_path: Path) -> None:
    llm = LLM(write_chat_model(tmp_path, "abc"), "cpu")
    llm.chat(HELLO)
    llm.close()
    with pytest.raises(RequestError, match="the model is closed"):
        llm.chat(HELLO)
