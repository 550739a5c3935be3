"""Text in and out: BOS exactly once, whole characters only, stop strings wherever tokens happen to break."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_engine import model_info
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from toy_executor import ToyExecutor, scripted

from infernum.engine.engine import Engine
from infernum.engine.events import FINISH_REASONS
from infernum.engine.fallback_decoder import FallbackDecoder
from infernum.engine.tokenizer import BROKEN, ContextDecoder, TextStream, Tokenizer, load_tokenizer
from infernum.errors import ConfigError, RequestError
from infernum.sampling_params import SamplingParams

WORDS = ["th", "he", "in", "er", "an"]


def byte_level(*, adds_bos=True):
    """As Llama 3: every byte is a token, a character outside ASCII is two to four."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, *WORDS])}
    backend = Backend(models.BPE(vocab=vocab, merges=[tuple(word) for word in WORDS]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<bos>"), AddedToken("<eos>"), AddedToken("<eot>")])
    if adds_bos:
        backend.post_processor = _bos_first(backend, "<bos>")
    return backend


def sentencepiece(*, adds_bos=True):
    """As Llama 2: a word begins with ▁, and a character without a token falls back to its bytes."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdefghijklmnopqrstuvwxyz.,",
    ]
    pieces += ["▁t", "▁a", "th", "▁th"]
    merges = [("▁", "t"), ("▁", "a"), ("t", "h"), ("▁t", "h")]
    vocab = {token: i for i, token in enumerate(pieces)}
    backend = Backend(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken("<s>", normalized=False), AddedToken("</s>", normalized=False)])
    if adds_bos:
        backend.post_processor = _bos_first(backend, "<s>")
    return backend


def _bos_first(backend, bos):
    return processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))])


BOTH = pytest.mark.parametrize(("make", "bos"), [(byte_level, "<bos>"), (sentencepiece, "<s>")])


@BOTH
@pytest.mark.parametrize("processor", [True, False])
@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize("typed", [True, False])
def test_bos_comes_first_exactly_once(make, bos, processor, add_bos, typed):
    tokenizer = Tokenizer(make(adds_bos=processor), bos=bos, add_bos=add_bos)
    ids = tokenizer.encode((bos if typed else "") + "the end")
    wanted = typed or (processor if add_bos is None else add_bos)
    assert ids.count(tokenizer.bos_id) == int(wanted)
    assert (ids[0] == tokenizer.bos_id) == wanted
    assert tokenizer.encode("") == ([tokenizer.bos_id] if (processor if add_bos is None else add_bos) else [])


@BOTH
def test_a_tokenizer_never_cuts_or_pads_a_prompt(make, bos):
    backend = make()
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    assert len(Tokenizer(backend, bos=bos).encode("a b c d e f g h")) > 8
    assert len(Tokenizer(backend, bos=bos).encode("a")) < 5


@BOTH
@given(prompt=st.text(max_size=12), continuation=st.text(max_size=12))
@example(prompt="the", continuation=" 你好，世界")
@example(prompt="smile: 👩‍👩‍👧", continuation="👩‍👩‍👧 and é")
@example(prompt="", continuation=" the")
@example(prompt="a", continuation="  a   a")
def test_streamed_text_is_the_text_decoded_at_once(make, bos, prompt, continuation):
    tokenizer = Tokenizer(make(), bos=bos)
    before = tokenizer.encode(prompt)
    ids = tokenizer.encode(prompt + continuation)
    if ids[: len(before)] != before:
        ids = before + tokenizer.encode(continuation)[1:]
    stream = TextStream(tokenizer, before)
    pieces = [stream.push(token) for token in ids[len(before) :]]
    assert not any(piece.endswith(BROKEN) for piece in pieces) or BROKEN in continuation
    assert tokenizer.decode(before) + "".join(pieces) + stream.flush() == tokenizer.decode(ids)


@BOTH
def test_a_character_comes_with_its_last_byte(make, bos):
    tokenizer = Tokenizer(make(), bos=bos)
    stream = TextStream(tokenizer, tokenizer.encode("a"))
    ids = tokenizer.encode("a你😀")[len(tokenizer.encode("a")) :]
    assert [stream.push(token) for token in ids] == ["", "", "你", "", "", "", "😀"]


@BOTH
@pytest.mark.parametrize("bytes_in_prompt", [1, 2])
def test_a_character_that_the_prompt_begins_is_shown_whole_and_nothing_after_it_is_lost(
    make, bos, bytes_in_prompt
):
    tokenizer = Tokenizer(make(), bos=bos)
    ids = tokenizer.encode("a你bcd")
    cut = len(tokenizer.encode("a")) + bytes_in_prompt
    stream = TextStream(tokenizer, ids[:cut])
    assert "".join(stream.push(token) for token in ids[cut:]) + stream.flush() == "你bcd"


DANTE = Path(__file__).resolve().parents[1] / "examples" / "dante_chat"


@pytest.mark.parametrize("special", [False, True])
def test_a_stream_of_bytes_is_what_the_tokenizer_decodes_of_any_tokens(special):
    tokenizer = load_tokenizer(DANTE)
    assert tokenizer.adds_bytes
    rng = np.random.default_rng(0)
    single = [token for token in range(tokenizer.vocab_size) if len(tokenizer.spelled(token)) == 1]
    for vocab in (np.arange(tokenizer.vocab_size + 9), np.array(single)):
        for _ in range(60):
            tokens = rng.choice(vocab, 200).tolist()
            by_bytes = TextStream(tokenizer, special=special)
            text = "".join(map(by_bytes.push, tokens)) + by_bytes.flush()
            assert text == tokenizer.decode(tokens, special=special)


@given(st.text(max_size=12), st.text(max_size=40), st.integers(0, 4))
def test_bytes_and_context_give_the_same_text_at_the_same_token(prompt, text, cut):
    tokenizer = Tokenizer(byte_level(adds_bos=False))
    ids = tokenizer.encode((prompt + text).replace(BROKEN, "?"))
    at = min(len(ids), len(tokenizer.encode(prompt)) + cut)
    by_bytes, by_context = TextStream(tokenizer, ids[:at]), TextStream(tokenizer, ids[:at])
    by_context._decoder = ContextDecoder(tokenizer, ids[:at], special=False)
    assert [by_bytes.push(token) for token in ids[at:]] == [by_context.push(token) for token in ids[at:]]
    assert by_bytes.flush() == by_context.flush()


@given(st.text(max_size=12), st.text(max_size=40), st.integers(0, 4), st.booleans())
def test_pieces_and_context_give_the_same_text_at_the_same_token(prompt, text, cut, strips):
    tokenizer = fallback(strips)
    ids = tokenizer.encode_plain((prompt + text).replace(BROKEN, "?"))
    at = min(len(ids), len(tokenizer.encode_plain(prompt)) + cut)
    while at < len(ids) and isinstance(piece := tokenizer.piece_of(ids[at]), int) and 0x80 <= piece < 0xC0:
        at += 1  # within a character, the context has the characters before it again
    by_pieces, by_context = TextStream(tokenizer, ids[:at]), TextStream(tokenizer, ids[:at])
    by_context._decoder = ContextDecoder(tokenizer, ids[:at], special=False)
    assert isinstance(by_pieces._decoder, FallbackDecoder)
    assert "".join(map(by_pieces.push, ids[at:])) == "".join(map(by_context.push, ids[at:]))
    assert by_pieces.flush() == by_context.flush()


BYTE = st.integers(3, 258)
ROW = st.one_of(
    st.text(max_size=3).map(lambda text: [byte + 3 for byte in text.encode()]),
    st.tuples(st.integers(0x83, 0xC2), st.lists(BYTE, max_size=6)).map(lambda row: [row[0], *row[1]]),
)
"""Byte tokens of characters; or such as are no characters from the first on, with any behind it."""


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 299), min_size=1, max_size=4), ROW), max_size=6), st.booleans()
)
def test_a_stream_of_pieces_is_what_the_tokenizer_decodes_of_any_rows(rows, strips):
    tokenizer = fallback(strips)
    others = {*range(3, 259), *tokenizer.special}
    texts = [token for token in range(tokenizer.vocab_size) if token not in others]
    tokens = [token for words, row in rows for token in [*(texts[word % len(texts)] for word in words), *row]]
    shown = [token for token in tokens if token not in tokenizer.special]
    stream = TextStream(tokenizer)
    assert "".join(map(stream.push, tokens)) + stream.flush() == tokenizer.decode(shown)
    whole = TextStream(tokenizer)
    assert whole.push_all(tokens) + whole.flush() == tokenizer.decode(shown)


def fallback(strips):
    """As Llama 2 and Mistral, which strip the space in front of a text, or as Gemma, which does not."""
    backend = sentencepiece(adds_bos=False)
    if not strips:
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    tokenizer = Tokenizer(backend)
    assert (tokenizer.falls_back, tokenizer.strips_space, tokenizer.adds_bytes) == (True, strips, False)
    return tokenizer


def test_a_character_that_the_prompt_begins_and_no_token_ends_is_the_prompts():
    tokenizer = Tokenizer(byte_level(adds_bos=False))
    half = tokenizer.encode("你")[:2]
    stream = TextStream(tokenizer, half)
    assert [stream.push(token) for token in tokenizer.encode("ab")] == ["a", "b"]


@BOTH
def test_the_bytes_of_tokens_add_up_to_the_text(make, bos):
    tokenizer = Tokenizer(make(), bos=bos)
    text = "naïve 😀 مرحبا\n  Canto"
    tokens = tokenizer.encode_plain(text)
    assert b"".join(map(tokenizer.bytes_of, tokens)).decode().strip() == text
    assert any(tokenizer.bytes_of(token).decode(errors="replace") == BROKEN for token in tokens)
    assert tokenizer.bytes_of(tokenizer.bos_id) == bos.encode()


@BOTH
def test_half_a_character_at_the_end_is_shown_as_broken(make, bos):
    tokenizer = Tokenizer(make(), bos=bos)
    stream = TextStream(tokenizer, tokenizer.encode("a"))
    for token in tokenizer.encode("a你你")[len(tokenizer.encode("a")) : -1]:
        stream.push(token)
    assert set(stream.flush()) == {BROKEN}


def test_bytes_that_are_no_character_do_not_hold_the_text_back_for_ever():
    tokenizer = Tokenizer(byte_level(), bos="<bos>")
    stream = TextStream(tokenizer)
    continuation_byte = tokenizer.encode("你")[2]
    assert "".join(stream.push(continuation_byte) for _ in range(100)).count(BROKEN) > 80


def test_a_word_that_begins_with_a_space_keeps_it_after_a_prompt_and_not_at_the_beginning():
    tokenizer = Tokenizer(sentencepiece(), bos="<s>")
    word = tokenizer.encode("th")[1:]
    assert len(word) == 1
    assert TextStream(tokenizer, tokenizer.encode("a")).push(word[0]) == " th"
    assert TextStream(tokenizer, [tokenizer.bos_id]).push(word[0]) == "th"


def test_special_tokens_are_not_shown():
    tokenizer = Tokenizer(byte_level(), bos="<bos>")
    stream = TextStream(tokenizer)
    assert [stream.push(t) for t in tokenizer.encode("<eos>a<eos>b")] == ["", "", "a", "", "b"]


@given(st.text("abth ", max_size=20), st.lists(st.text("abth ", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string_and_nothing_of_it_is_shown(text, stops):
    tokenizer = Tokenizer(byte_level(adds_bos=False))
    stream = TextStream(tokenizer, stop=tuple(stops))
    shown = "".join(stream.push(token) for token in tokenizer.encode(text)) + stream.flush()
    at = [text.find(stop) for stop in stops if stop in text]
    assert stream.stopped == bool(at)
    assert text.startswith(shown)
    if at:
        assert not any(stop in shown for stop in stops)
    else:
        assert shown == text


def test_text_that_may_begin_a_stop_string_is_held_back_until_it_does_not():
    tokenizer = Tokenizer(byte_level(adds_bos=False))
    stream = TextStream(tokenizer, stop=("abc",))
    assert [stream.push(token) for token in tokenizer.encode("xababdab")] == [
        "x",
        "",
        "",
        "ab",
        "",
        "abd",
        "",
        "",
    ]
    assert stream.flush() == "ab"


def _engine(text, prompt="a", *, cut=None):
    """An engine whose model says `text` after `prompt`, and the tokens of the prompt."""
    tokenizer = Tokenizer(byte_level(), bos="<bos>")
    before = tokenizer.encode(prompt)
    vocab = tokenizer.vocab_size
    script = [*tokenizer.encode(text)[1:cut], tokenizer.encode("<eos>")[1]]
    executor = ToyExecutor(scripted(vocab, len(before), script), vocab, pages=40)
    return Engine(executor, model_info(100, vocab), [script[-1]], tokenizer), before


def _generate(text, prompt="a", *, cut=None, **params):
    engine, before = _engine(text, prompt, cut=cut)
    return engine.generate([before], SamplingParams(temperature=0, **params))[0]


@pytest.mark.parametrize("stop", [("STOP",), ("never",), ()])
def test_events_of_a_stream_and_of_steps_add_up_to_what_is_generated_at_once(stop):
    params = SamplingParams(temperature=0, stop=stop)
    completion = _generate("é你 and then STOP here", stop=stop)
    engine, before = _engine("é你 and then STOP here")
    streamed = list(engine.stream([before], params))
    number, stepped = engine.add(before, params), []
    while engine.busy:
        stepped += engine.step()
    for events, sequence in ((streamed, 0), (stepped, number)):
        assert {event.sequence for event in events} == {sequence}
        assert "".join(event.text for event in events) == completion.text
        assert tuple(token for event in events for token in event.tokens) == completion.tokens
        ends = [event.finish_reason for event in events]
        assert ends[-1] == completion.finish_reason and set(ends[:-1]) == {None}
    assert engine._pool.free_pages == 40


def test_a_stop_string_is_a_cancel_and_tokens_computed_after_it_are_dropped():
    engine, before = _engine("and STOP then")
    engine.add(before, SamplingParams(temperature=0, stop=("STOP",)))
    events = []
    while engine.busy:
        events += engine.step()
    assert sum(len(event.tokens) for event in events) == 7  # an, d, space, S, T, O, P
    assert engine.statistics.output_tokens >= 7
    assert engine._loop.sequences == {} == engine._transcripts


def test_no_text_is_made_by_the_thread_that_makes_the_step(monkeypatch):
    engine, before = _engine("and then")
    engine.add(before, SamplingParams(temperature=0, stop=("never",)))
    for name in ("decode", "bytes_of"):
        monkeypatch.setattr(Tokenizer, name, lambda *_: pytest.fail("text is made in the step"))
    tokens, ends = [], []
    while engine.busy:
        events = engine.step_events()
        tokens += events.tokens.tolist()
        ends += events.ends.tolist()
    assert engine.tokenizer.bos_id not in tokens and len(tokens) == 7
    assert [FINISH_REASONS[end] for end in ends] == [None] * 6 + ["stop"]
    assert engine._transcripts == {}


def test_a_stop_string_across_tokens_ends_a_sequence():
    found = _generate("and then STOP here", stop=("STOP", "never"))
    assert found.text == "and then "
    assert found.finish_reason == "stop"


def test_an_end_token_lets_go_of_what_was_held_back_and_is_not_shown():
    found = _generate("and ST", stop=("STOP",))
    assert found.text == "and ST"
    assert found.finish_reason == "stop"


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("and<eot>more", "<eot>", "and"),  # a special token alone
        ("and<eot>more", "<eot>m", "and"),  # with text behind it
        ("and<eot>more", "d<eot>", "an"),  # with text in front of it
        ("and<eot><bos>more", "<eot><bos>", "and"),
        ("and<bos>more<eot>the", "<eot>t", "andmore"),
        ("é<eot>more", "<eot>", "é"),
    ],
)
def test_a_stop_string_with_special_tokens_ends_a_sequence_before_it(text, stop, shown):
    completion = _generate(text, stop=(stop,))
    assert (completion.text, completion.finish_reason) == (shown, "stop")


@pytest.mark.parametrize("stop", ["<eot>x", "x<eot>", ">", "<eot", "anx<eot>"])
def test_special_tokens_that_complete_no_stop_string_are_not_shown(stop):
    completion = _generate("an<eot>more", stop=(stop,))
    assert (completion.text, len(completion.tokens)) == ("anmore", 7)


def test_a_stop_string_without_special_tokens_is_looked_for_in_the_text_that_is_shown():
    assert _generate("an<eot>more", stop=("nm", "<eot>x")).text == "a"


def test_a_stop_string_that_ends_in_an_end_token_is_not_shown():
    assert _generate("and", stop=("d<eos>",)).text == "an"
    assert _generate("and", stop=("d<eos>",), ignore_eos=True).text == "an"


def test_half_a_character_in_front_of_a_special_token_that_stops_is_shown_as_broken():
    tokenizer = Tokenizer(byte_level(adds_bos=False))
    stream = TextStream(tokenizer, stop=("<eos>",))
    ids = [*tokenizer.encode("a你")[:-1], tokenizer.encode("<eos>")[0]]
    assert "".join(stream.push(token) for token in ids) + stream.flush() == "a" + BROKEN
    assert stream.stopped


@given(
    st.lists(st.sampled_from(["a", "b", "é", "<eos>", "<bos>"]), max_size=14),
    st.lists(
        st.lists(st.sampled_from(["a", "b", "é", "<eos>", "<bos>"]), min_size=1, max_size=3), max_size=3
    ),
)
def test_text_ends_before_the_first_stop_string_of_any_tokens(pieces, stops):
    tokenizer = Tokenizer(byte_level(adds_bos=False))
    special = {"<eos>", "<bos>"}
    stream = TextStream(tokenizer, stop=tuple("".join(stop) for stop in stops))
    shown = "".join(stream.push(token) for token in tokenizer.encode("".join(pieces))) + stream.flush()
    for length in range(len(pieces) + 1):  # the first stop string to be complete ends the text
        visible = [place for place in range(length) if pieces[place] not in special]
        ends = []
        for stop in stops:
            places = range(length) if special & set(stop) else visible
            row = [pieces[place] for place in places]
            at = next((i for i in range(len(row)) if row[i : i + len(stop)] == stop), None)
            ends += [] if at is None else [sum(place < places[at] for place in visible)]
        if ends:
            break
    assert stream.stopped == bool(ends)
    assert shown == "".join(pieces[place] for place in visible[: min(ends, default=len(visible))])


def test_the_length_limit_may_cut_a_character():
    found = _generate("é你", max_tokens=4)
    assert found.text == "é" + BROKEN
    assert found.finish_reason == "length"


def test_characters_of_many_bytes_come_out_of_the_engine_whole():
    assert _generate("你好 👩‍👩‍👧 naïve").text == "你好 👩‍👩‍👧 naïve"


def _save(folder, backend, config=None, special=None):
    backend.save(str(folder / "tokenizer.json"))
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        if content is not None:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return load_tokenizer(folder)


def test_a_folder_without_a_tokenizer_has_none(tmp_path):
    assert load_tokenizer(tmp_path) is None


@pytest.mark.parametrize("bos", ["<bos>", {"content": "<bos>", "special": True}])
def test_bos_is_read_from_either_file_in_either_spelling(tmp_path, bos):
    by_config = _save(tmp_path, byte_level(adds_bos=False), {"bos_token": bos, "add_bos_token": True})
    assert by_config.encode("a")[0] == by_config.bos_id is not None
    by_map = _save(tmp_path, byte_level(), {}, {"bos_token": bos})
    assert by_map.encode("<bos>a") == by_config.encode("a")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "tokenizer_config.json: is not valid JSON"),
        ("[]", "tokenizer_config.json: holds no JSON object"),
        ({"bos_token": 3}, "bos_token is 3; it must be a string"),
        ({"add_bos_token": "yes"}, "add_bos_token is 'yes'; it must be true or false"),
        ({"bos_token": "<none>", "add_bos_token": True}, "bos_token '<none>' is no token of tokenizer.json"),
    ],
)
def test_a_broken_tokenizer_config_is_one_clear_error(tmp_path, config, message):
    with pytest.raises(ConfigError, match=message):
        _save(tmp_path, byte_level(), config)


@pytest.mark.parametrize("config", [None, {}, {"bos_token": None}, {"add_bos_token": True}])
def test_bos_of_a_post_processor_comes_first_exactly_once_whatever_names_it(tmp_path, config):
    tokenizer = _save(tmp_path, byte_level(), config)
    assert tokenizer.encode("<bos>the").count(tokenizer.bos_id) == 1
    assert tokenizer.encode("<bos>the") == tokenizer.encode("the")
    assert tokenizer.encode("") == [tokenizer.bos_id]


def test_bos_that_only_config_json_names_is_put_in_front_where_that_is_asked_for(tmp_path):
    bos = byte_level().token_to_id("<bos>")
    backend = byte_level(adds_bos=False)
    _save(tmp_path, backend, {})
    assert load_tokenizer(tmp_path, bos).encode("a") == backend.encode("a").ids
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    assert load_tokenizer(tmp_path, bos).encode("<bos>a") == [bos, *backend.encode("a").ids]


def test_a_post_processor_that_puts_another_token_in_front_than_bos_token_does_so_once(tmp_path):
    backend = byte_level(adds_bos=False)
    backend.post_processor = _bos_first(backend, "<eos>")
    tokenizer = _save(tmp_path, backend, {"bos_token": "<bos>"})
    assert tokenizer.encode("<eos>a") == tokenizer.encode("a") == backend.encode("a").ids


def _ends_with_eos(backend):
    ids = [(token, backend.token_to_id(token)) for token in ("<bos>", "<eos>")]
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ids)
    return backend


@pytest.mark.parametrize(
    ("processor", "add_eos", "ends"),
    [(True, None, True), (True, True, True), (True, False, False), (False, True, True), (False, None, False)],
)
def test_eos_behind_a_prompt_is_as_transformers_has_it_and_never_unsaid(
    tmp_path, caplog, processor, add_eos, ends
):
    backend = _ends_with_eos(byte_level()) if processor else byte_level()
    config = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "add_eos_token": add_eos}
    tokenizer = _save(tmp_path, backend, config)
    plain = byte_level().encode("a").ids
    assert tokenizer.encode("a") == [*plain, backend.token_to_id("<eos>")][: len(plain) + ends]
    assert tokenizer.encode("a<eos>") == [*plain, backend.token_to_id("<eos>")]
    assert ("ends every prompt with an end token" in caplog.text) == ends


def test_a_prompt_that_the_tokenizer_cannot_split_is_a_request_error():
    tokenizer = Tokenizer(Backend(models.WordLevel(vocab={"a": 0})))
    with pytest.raises(RequestError, match=r"cannot be split into tokens \(.+UNK.+\); give token ids"):
        tokenizer.encode("b")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_file_that_git_lfs_has_not_downloaded_is_named_with_its_remedy(tmp_path, name):
    _save(tmp_path, byte_level(), {})
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ConfigError, match=f"{name}: is a Git LFS pointer.+git lfs pull"):
        load_tokenizer(tmp_path)


def test_a_link_to_a_tokenizer_that_leads_nowhere_is_no_missing_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").symlink_to(tmp_path / "blobs" / "gone")
    with pytest.raises(
        ConfigError, match=r"tokenizer.json: is a link to .*, which is gone; download it again"
    ):
        load_tokenizer(tmp_path)


def test_a_folder_in_place_of_a_tokenizer_cannot_be_read(tmp_path):
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(ConfigError, match=r"tokenizer.json: cannot be read \(Is a directory"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"version": "1.0"}'])
def test_a_broken_tokenizer_is_one_clear_error(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"tokenizer.json: is not (a tokenizer|UTF-8 text) \(.+\); download it again"
    ) as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)
