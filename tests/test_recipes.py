"""Recipes: what each kind gives, on arrays written out by hand, and their text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernum.dtypes import BF16, F16, F32, I32, DType
from infernum.errors import CheckpointError, ShapeError
from infernum.ir.recipe_text import parse_recipe, recipe_text
from infernum.recipes import (
    ALONE,
    PACKINGS,
    Each,
    Either,
    Packed,
    Rank,
    Read,
    Recipe,
    Rows,
    Share,
    Stack,
    filled,
    packing,
    prefixed,
    read,
    shape_of,
    spelled,
    stack,
    tensor_names,
)
from infernum.weights import values as values_module
from infernum.weights.values import choose, pieces, run_of, values

TYPES = {np.dtype(t.numpy): t for t in (F32, F16, BF16, I32)}


@dataclass(frozen=True)
class Arrays:
    """A checkpoint of arrays, which notes the most elements that were read at a time."""

    arrays: Mapping[str, np.ndarray]
    sizes: list[int]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def dtype(self, name: str) -> DType:
        return TYPES[self.arrays[name].dtype]

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        found = self.arrays[name][start:stop]
        self.sizes.append(found.size)
        return found


def arrays(**named: np.ndarray) -> Arrays:
    return Arrays({name.replace("__", "."): array for name, array in named.items()}, [])


Q = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
K = np.array([[7, 8, 9]], np.float32)
QKV = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]], np.float32)
UP = [np.array([[10 * e, 10 * e + 1], [10 * e + 2, 10 * e + 3]], np.float32) for e in range(3)]
CHECKPOINT = arrays(
    q=Q, k=K, qkv=QKV, up__0=UP[0], up__1=UP[1], up__2=UP[2], bias=np.arange(4, dtype=np.float32)
)

q, k, qkv, up, bias = (
    read("q", 2, 3),
    read("k", 1, 3),
    read("qkv", 4, 3),
    read("up.{expert}", 2, 2),
    read("bias", 4),
)

GIVES: dict[str, tuple[Recipe, Rank, list[object]]] = {
    "a tensor": (q, ALONE, [[1, 2, 3], [4, 5, 6]]),
    "the first alternative that is there": (Read(("wq", "q", "qkv"), (2, 3)), ALONE, [[1, 2, 3], [4, 5, 6]]),
    "rows of a fused tensor": (Rows(qkv, 1, 3), ALONE, [[4, 5, 6], [7, 8, 9]]),
    "rows of rows": (Rows(Rows(qkv, 1, 4), 1, 2), ALONE, [[7, 8, 9]]),
    "a stack": (Stack((q, k)), ALONE, [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
    "rows across the parts of a stack": (Rows(Stack((q, k)), 1, 3), ALONE, [[4, 5, 6], [7, 8, 9]]),
    "a stack of rows": (Stack((Rows(qkv, 3, 4), Rows(qkv, 0, 1))), ALONE, [[10, 11, 12], [1, 2, 3]]),
    "one after the other": (
        Each(up, 3),
        ALONE,
        [[[0, 1], [2, 3]], [[10, 11], [12, 13]], [[20, 21], [22, 23]]],
    ),
    "each, of a stack": (
        Each(Stack((up, Rows(up, 0, 1))), 2),
        ALONE,
        [[[0, 1], [2, 3], [0, 1]], [[10, 11], [12, 13], [10, 11]]],
    ),
    "rows of each": (Rows(Each(up, 3), 2, 3), ALONE, [[[20, 21], [22, 23]]]),
    "all, for one rank": (Share(qkv, 0), ALONE, QKV.tolist()),
    "a share of the rows": (Share(qkv, 0), Rank(1, 2), [[7, 8, 9], [10, 11, 12]]),
    "a share of the columns": (Share(qkv, 1), Rank(2, 3), [[3], [6], [9], [12]]),
    "a share of a vector": (Share(bias, 0), Rank(3, 4), [3]),
    "a stack of shares": (
        Stack((Share(q, 0), Share(Rows(qkv, 2, 4), 0))),
        Rank(1, 2),
        [[4, 5, 6], [10, 11, 12]],
    ),
    "a share of the experts": (Share(Each(up, 3), 0), Rank(1, 3), [[[10, 11], [12, 13]]]),
    "a share of each expert": (Each(Share(up, 0), 2), Rank(1, 2), [[[2, 3]], [[12, 13]]]),
    "a share of each expert's columns": (Share(Each(up, 2), 2), Rank(0, 2), [[[0], [2]], [[10], [12]]]),
    "a transpose": (Packed(q, "transpose"), ALONE, [[1, 4], [2, 5], [3, 6]]),
    "a transpose of each": (
        Each(Packed(up, "transpose"), 2),
        ALONE,
        [[[0, 2], [1, 3]], [[10, 12], [11, 13]]],
    ),
    "a transpose of all": (Packed(Each(up, 2), "transpose"), ALONE, [[[0, 2], [1, 3]], [[10, 12], [11, 13]]]),
    "rows of a transpose": (Rows(Packed(q, "transpose"), 1, 3), ALONE, [[2, 5], [3, 6]]),
    "a share of a transpose": (Share(Packed(q, "transpose"), 1), Rank(1, 2), [[4], [5], [6]]),
    "the recipe that can be followed": (
        Either((read("wq", 2, 3), Rows(qkv, 0, 2))),
        ALONE,
        [[1, 2, 3], [4, 5, 6]],
    ),
    "the first of two recipes": (Either((k, Rows(qkv, 3, 4))), ALONE, [[7, 8, 9]]),
}


@pytest.mark.parametrize("what", GIVES)
@pytest.mark.parametrize("at_once", [1, 4, 2**21])
def test_a_recipe_gives(what: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, rank, wanted = GIVES[what]
    monkeypatch.setattr(values_module, "PIECE", at_once)
    recipe = choose(recipe, CHECKPOINT.names)
    expected = np.array(wanted, np.float32)
    assert shape_of(recipe, rank.count) == expected.shape
    assert np.array_equal(values(recipe, CHECKPOINT, rank), expected)
    assert np.array_equal(np.concatenate(list(pieces(recipe, CHECKPOINT, rank))), expected.reshape(-1))


@pytest.mark.parametrize("what", GIVES)
def test_a_run_of_a_tensor_is_found_where_it_is_one(what: str) -> None:
    recipe, rank, wanted = GIVES[what]
    recipe = choose(recipe, CHECKPOINT.names)
    run = run_of(recipe, rank)
    if run is not None:
        expected = np.array(wanted).reshape(-1)
        flat = CHECKPOINT.arrays[run[0].names[0]].reshape(-1)
        assert np.array_equal(flat[run[1] : run[1] + expected.size], expected)
    assert (run is None) == (
        "stack" in what
        or "each" in what
        or "other" in what
        or "transpose" in what
        or "expert" in what
        or "columns" in what
    )


def test_no_more_is_read_at_a_time_than_was_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values_module, "PIECE", 6)
    source = Arrays(CHECKPOINT.arrays, [])
    for recipe in (qkv, Rows(qkv, 1, 4), Stack((q, qkv)), Each(up, 3), Share(qkv, 1)):
        list(pieces(recipe, source))
    assert max(source.sizes) == 6


TEXTS: dict[str, Recipe] = {
    '"q" [2, 3]': q,
    '"q" | "wq" | "attn.\\"q\\"#" [2, 3]': Read(("q", "wq", 'attn."q"#'), (2, 3)),
    'i32("words" [4, 2])': Read(("words",), (4, 2), "i32"),
    '"q" [2, 3], "k" [1, 3]': Stack((q, k)),
    'rows("qkv" [4, 3], 0, 2), "k" [1, 3]': Stack((Rows(qkv, 0, 2), k)),
    'rows(stack("q" [2, 3], "k" [1, 3]), 1, 3)': Rows(Stack((q, k)), 1, 3),
    'share("q" [2, 3], 1)': Share(q, 1),
    'each(stack("up.{expert}" [2, 2], rows("up.{expert}" [2, 2], 0, 1)), 8)': Each(
        Stack((up, Rows(up, 0, 1))), 8
    ),
    'packed("q" [2, 3], transpose)': Packed(q, "transpose"),
    'either("q" | "wq" [2, 3], rows("qkv" [4, 3], 0, 2))': Either(
        (Read(("q", "wq"), (2, 3)), Rows(qkv, 0, 2))
    ),
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_recipe_reads_back_as_it_was_written(text: str) -> None:
    assert recipe_text(TEXTS[text]) == text
    assert parse_recipe(text, (9, 9)) == TEXTS[text]


def test_the_shape_of_a_tensor_that_is_the_whole_weight_is_left_out() -> None:
    for recipe, text in ((q, '"q"'), (Read(("q", "wq"), (2, 3)), '"q" | "wq"')):
        assert recipe_text(recipe, (2, 3)) == text
        assert parse_recipe(text, (2, 3)) == recipe


WRONG_TEXT = [
    "", '"q"', '"q" [2', '"q" [2] [3]', '"q" [a]', 'rows("q" [2], 0)', "rows(0, 1)", 'turn("q" [2])',
    'i32("q")', 'f7("q" [2])', 'i32(rows("q" [2], 0, 1))', '"q" [2.5]', '"q", "k" [2]', 'rows("q" [2], 0, -1)',
    '"q" | k [2]', 'each("q" [2], "k" [2])', 'stack()', '"q" [2],', 'packed("q" [2, 2] transpose)',
]  # fmt: skip


@pytest.mark.parametrize("text", WRONG_TEXT)
def test_text_that_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # whatever json or int have to say
        parse_recipe(text, ())


def recipes() -> st.SearchStrategy[Recipe]:
    sizes = st.integers(1, 5)
    reads = st.builds(
        Read,
        st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=3).map(tuple),
        st.lists(sizes, min_size=1, max_size=3).map(tuple),
        st.sampled_from([None, "i32"]),
    )

    def more(inner: st.SearchStrategy[Recipe]) -> st.SearchStrategy[Recipe]:
        several = st.lists(inner, min_size=2, max_size=3).map(tuple)
        return st.one_of(
            st.builds(Rows, inner, sizes, sizes),
            st.builds(Share, inner, sizes),
            st.builds(Stack, several),
            st.builds(Each, inner, sizes),
            st.builds(Packed, inner, st.just("transpose")),
            st.builds(Either, several),
        )

    return st.recursive(reads, more, max_leaves=6)


@given(recipes())
def test_every_recipe_survives_its_text_and_json(recipe: Recipe) -> None:
    assert parse_recipe(recipe_text(recipe), ()) == recipe
    assert msgspec.json.decode(msgspec.json.encode(recipe), type=Recipe) == recipe


SENSELESS: dict[str, tuple[Recipe, int, str]] = {
    "no name": (Read((), (2,)), 1, "needs a name"),
    "no axis": (read("q"), 1, r"q: a weight of shape \[\] has no elements"),
    "nothing in it": (read("q", 0, 4), 1, "no elements"),
    "an unknown type": (Read(("q",), (2,), "f7"), 1, "unknown dtype 'f7'"),
    "rows past the end": (Rows(qkv, 2, 5), 1, "qkv: has 4 rows, and not rows 2 to 5"),
    "no rows": (Rows(qkv, 2, 2), 1, "not rows 2 to 2"),
    "an axis that is not there": (Share(qkv, 2), 2, r"qkv: \[4, 3\] has no axis 2"),
    "a share that does not divide": (
        Share(qkv, 1),
        2,
        r"qkv: axis 1 of \[4, 3\] does not divide among 2 GPUs",
    ),
    "widths that differ": (
        Stack((q, read("wide", 2, 4))),
        1,
        r"q, wide: shapes \[\[2, 3\], \[2, 4\]\] do not stack",
    ),
    "one of a stack": (Stack((q,)), 1, "do not stack"),
    "each of what is no expert's": (Each(q, 4), 1, r"q: `each` needs a count above 0 and \{expert\}"),
    "each of none": (Each(up, 0), 1, "count above 0"),
    "each within each": (Each(Each(up, 2), 2), 1, "within another"),
    "an unknown packing": (Packed(q, "braid"), 1, "no packing is named 'braid'; use transpose"),
    "a vector turned": (Packed(bias, "transpose"), 1, "transpose needs two axes"),
    "alternatives of two shapes": (
        Either((q, k)),
        1,
        r"q, k: the alternatives have the shapes \[\[1, 3\], \[2, 3\]\]",
    ),
}


@pytest.mark.parametrize("what", SENSELESS)
def test_a_recipe_that_makes_no_sense_says_so(what: str) -> None:
    recipe, ranks, message = SENSELESS[what]
    with pytest.raises(ShapeError, match=message):
        shape_of(recipe, ranks)


def test_a_stack_of_stacks_is_one_stack_and_of_one_is_itself() -> None:
    assert stack([Stack((q, k)), qkv]) == stack([q, Stack((k, qkv))]) == Stack((q, k, qkv))
    assert stack([q]) == q


def test_names_are_filled_and_prefixed_wherever_they_stand() -> None:
    whole = Either(
        (
            Each(read("l.{layer}.up.{expert}", 2, 2), 2),
            Packed(Read(("a", "b{layer}"), (2, 2, 2)), "transpose"),
        )
    )
    found = prefixed(filled(whole, "layer", 7), "model.")
    assert found == Either(
        (
            Each(read("model.l.7.up.{expert}", 2, 2), 2),
            Packed(Read(("model.a", "model.b7"), (2, 2, 2)), "transpose"),
        )
    )
    assert tensor_names(found) == ["model.l.7.up.{expert}"]
    assert tensor_names(Stack((found, Packed(read("a", 2, 2), "transpose"), read("a", 2, 2)))) == [
        "model.l.7.up.{expert}",
        "a",
    ]


def test_beginnings_of_names_have_alternatives_wherever_they_stand() -> None:
    table = Read(("model.table", "lm_head.weight"), (4, 2))
    rows = Rows(table, 0, 2)
    both = spelled(
        Stack((rows, read("other", 2, 2))), {"model.": ("a.model.", "model.a."), "lm_head.": ("a.lm_head.",)}
    )
    names = ("model.table", "lm_head.weight", "a.model.table", "model.a.table", "a.lm_head.weight")
    assert both == Stack((Rows(Read(names, (4, 2)), 0, 2), read("other", 2, 2)))


def test_a_missing_tensor_is_named_with_all_its_alternatives() -> None:
    with pytest.raises(
        CheckpointError, match=r"^wq: the checkpoint has no such tensor, nor q_proj or qq in its place"
    ):
        choose(Stack((q, Read(("wq", "q_proj", "qq"), (2, 3)))), CHECKPOINT.names)
    either = Either((Stack((read("wq", 1, 3), k)), Rows(read("wqkv", 4, 3), 0, 2)))
    with pytest.raises(
        CheckpointError, match=r"^wq, k: the checkpoint has no such tensor, nor wqkv in its place"
    ):
        choose(either, CHECKPOINT.names)


def test_experts_have_alternatives_too() -> None:
    recipe = Either((read("stacked", 3, 2, 2), Each(Read(("gate.{expert}", "up.{expert}"), (2, 2)), 3)))
    assert choose(recipe, CHECKPOINT.names) == Each(up, 3)


def test_a_packing_of_ones_own_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infernum.recipes.PACKINGS", dict(PACKINGS))

    @packing(lambda shape: shape)
    def upside_down(array: np.ndarray) -> np.ndarray:
        return array[::-1]

    assert upside_down(K) is not None
    recipe = Stack((Packed(q, "upside_down"), k))
    assert np.array_equal(values(recipe, CHECKPOINT), [[4, 5, 6], [1, 2, 3], [7, 8, 9]])


def test_values_keep_the_type_that_they_are_stored_in() -> None:
    half = Q.astype(ml_dtypes.bfloat16)
    assert values(Packed(q, "transpose"), arrays(q=half)).dtype == half.dtype
