"""The NumPy meanings of attention, the paged cache, rope and row picking, against plain float64 versions."""

from __future__ import annotations

import numpy as np
import pytest

from infernum.dtypes import F32, I32
from infernum.errors import ShapeError
from infernum.fusion import RULES
from infernum.ir.apply import apply_rules
from infernum.ir.block import BATCH
from infernum.ir.graph import Graph, Input, TensorType
from infernum.ir.interface import states_of
from infernum.ir.kernel import Target
from infernum.ir.trace import Trace
from infernum.ops import append, attention, embedding, rope, select_rows
from infernum.rope import Rope

PAGE = 64


class Ragged:
    """A random ragged batch: sequence s has `before[s]` positions in the cache and `new[s]` new tokens."""

    def __init__(self, before: list[int], new: list[int], heads: int, kv_heads: int, dim: int) -> None:
        rng = np.random.default_rng(7)
        self.context = [b + n for b, n in zip(before, new, strict=True)]
        tokens, columns = sum(new), max(-(-c // PAGE) for c in self.context)
        needed = sum(-(-c // PAGE) for c in self.context)
        free = iter(rng.permutation(needed + 2))
        self.page_table = np.full((len(new), columns), -1, np.int32)
        for s, context in enumerate(self.context):
            for j in range(-(-context // PAGE)):
                self.page_table[s, j] = next(free)
        self.positions = np.concatenate(
            [np.arange(b, b + n) for b, n in zip(before, new, strict=True)]
        ).astype(np.int32)
        self.sequence = np.repeat(np.arange(len(new)), new).astype(np.int32)
        self.query_start = np.concatenate([[0], np.cumsum(new)]).astype(np.int32)
        self.q = rng.standard_normal((tokens, heads, dim), dtype=np.float32)
        self.keys = [rng.standard_normal((c, kv_heads, dim), dtype=np.float32) for c in self.context]
        self.values = [rng.standard_normal((c, kv_heads, dim), dtype=np.float32) for c in self.context]
        self.kv = np.full((needed + 2, 2, kv_heads, PAGE, dim), np.nan, np.float32)
        old = [slice(0, b) for b in before]
        self.store(old, [np.arange(b) for b in before])
        self.kv = self.store(
            [slice(b, None) for b in before],
            [np.arange(b, c) for b, c in zip(before, self.context, strict=True)],
        )

    def store(self, parts: list[slice], positions: list[np.ndarray]) -> np.ndarray:
        return append.meaning(
            self.kv,
            np.concatenate([k[p] for k, p in zip(self.keys, parts, strict=True)]),
            np.concatenate([v[p] for v, p in zip(self.values, parts, strict=True)]),
            np.concatenate(positions),
            np.repeat(np.arange(len(positions)), [len(p) for p in positions]),
            self.page_table,
        )

    def expected(self, scale: float, window: int = 0, softcap: float = 0.0) -> np.ndarray:
        out = np.empty(self.q.shape, np.float64)
        group = self.q.shape[1] // self.kv.shape[2]
        for t, (s, position) in enumerate(zip(self.sequence, self.positions, strict=True)):
            attended = range(max(0, position - window + 1) if window else 0, position + 1)
            for h in range(self.q.shape[1]):
                keys = self.keys[s][attended, h // group].astype(np.float64)
                scores = keys @ self.q[t, h].astype(np.float64) * scale
                if softcap:
                    scores = softcap * np.tanh(scores / softcap)
                weights = np.exp(scores - scores.max())
                out[t, h] = weights / weights.sum() @ self.values[s][attended, h // group].astype(np.float64)
        return out

    def attend(self, scale: float, **attrs: float) -> np.ndarray:
        facts = self.positions, self.sequence, self.query_start, self.page_table
        return attention.meaning(self.q, self.kv, *facts, scale=scale, **attrs)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(2, 2, 64), (8, 2, 128), (14, 2, 64), (7, 1, 80), (4, 4, 80)]
)
@pytest.mark.parametrize(
    ("before", "new"),
    [([0], [1]), ([0, 0], [70, 3]), ([63, 0, 130], [1, 65, 1]), ([100, 64, 1], [90, 1, 0])],
    ids=["first token", "prompts", "prompt beside decodes", "chunk, decode, nothing"],
)
def test_attention_is_causal_over_the_pages_of_each_sequence(
    heads: int, kv_heads: int, dim: int, before: list[int], new: list[int]
) -> None:
    batch = Ragged(before, new, heads, kv_heads, dim)
    np.testing.assert_allclose(batch.attend(dim**-0.5), batch.expected(dim**-0.5), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("before", "new"), [([0], [70]), ([63, 0, 130], [1, 65, 1]), ([100, 64, 1], [90, 1, 0]), ([200], [5])]
)
@pytest.mark.parametrize("window", [1, 2, 64, 65, 1000])
def test_a_window_holds_so_many_positions_the_tokens_own_among_them(
    window: int, before: list[int], new: list[int]
) -> None:
    batch = Ragged(before, new, 4, 2, 16)
    np.testing.assert_allclose(
        batch.attend(0.25, window=window), batch.expected(0.25, window), rtol=2e-5, atol=2e-5
    )
    if window < max(batch.context):
        assert np.abs(batch.attend(0.25, window=window) - batch.expected(0.25, window + 1)).max() > 1e-2


@pytest.mark.parametrize("softcap", [0.5, 50.0])
def test_scores_are_capped_after_they_are_scaled(softcap: float) -> None:
    batch = Ragged([63, 0], [1, 65], 4, 2, 16)
    batch.q *= 40
    expected = batch.expected(0.25, softcap=softcap)
    np.testing.assert_allclose(batch.attend(0.25, softcap=softcap), expected, rtol=2e-5, atol=2e-5)
    assert np.abs(expected - batch.expected(0.25)).max() > 1e-2


@pytest.mark.parametrize("attrs", [{"window": -1}, {"softcap": -0.5}])
def test_a_negative_window_or_cap_is_refused(attrs: dict[str, float]) -> None:
    batch = Ragged([0], [1], 2, 2, 16)
    types = [TensorType(a.shape, F32 if a.dtype == np.float32 else I32) for a in (batch.q, batch.kv)]
    facts = [TensorType(a.shape, I32) for a in (batch.positions, batch.sequence, batch.query_start)]
    with pytest.raises(ShapeError, match="must not be negative"):
        attention.infer_types(*types, *facts, TensorType(batch.page_table.shape, I32), scale=1.0, **attrs)


@pytest.mark.parametrize("window", [0, 64])
def test_a_long_prompt_in_chunks_of_queries_gives_the_same(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Ragged([30], [150], 4, 2, 64)
    whole = batch.attend(0.125, window=window)
    monkeypatch.setitem(attention.meaning.__globals__, "_SCORES", 180 * 2 * 7)
    np.testing.assert_array_equal(batch.attend(0.125, window=window), whole)


def test_append_changes_the_cache_in_place_and_nothing_else() -> None:
    batch = Ragged([0], [66], 2, 2, 64)
    assert append.in_place == {0: 0}
    assert np.isnan(batch.kv).sum() == batch.kv.size - 66 * 2 * 2 * 64
    page = batch.page_table[0, 1]
    np.testing.assert_array_equal(batch.kv[page, 0, :, 1], batch.keys[0][65])
    np.testing.assert_array_equal(batch.kv[page, 1, :, 1], batch.values[0][65])


@pytest.mark.parametrize("dim", [64, 80])
def test_rope_turns_pairs_half_a_head_apart(dim: int) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 3, dim), dtype=np.float32)
    positions = np.array([0, 1, 77, 8191, 131071], np.int32)
    settings = Rope(kind="llama3", theta=5e5, factor=8.0, original_max_position=8192)
    angle = (positions[:, None].astype(np.float32) * settings.inv_freq(dim)).astype(np.float64)
    pairs = x[..., : dim // 2] + 1j * x[..., dim // 2 :].astype(np.float64)
    turned = pairs * np.exp(1j * angle)[:, None]
    out = rope.meaning(x, positions, rope=settings)
    np.testing.assert_allclose(out, np.concatenate([turned.real, turned.imag], axis=-1), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(out[0], x[0])


def test_rope_angles_on_the_gpu_are_exact_enough_at_long_contexts() -> None:
    """The reduction of include/rope.cuh in float32 NumPy, a fused multiply-add being one in float64, rounded."""
    angle = np.linspace(0, 131072, 200001, dtype=np.float32)

    def fma(a: np.ndarray, b: np.float32, c: np.ndarray) -> np.ndarray:
        return (a.astype(np.float64) * np.float64(b) + c.astype(np.float64)).astype(np.float32)

    inv_pi_high, inv_pi_low = np.float32(0.318309873342514038), np.float32(1.28412765e-8)
    high = angle * inv_pi_high
    low = fma(angle, inv_pi_low, fma(angle, inv_pi_high, -high))
    reduced = (high - np.float32(2) * np.rint(np.float32(0.5) * high)) + low
    for f in (np.sin, np.cos):
        assert np.abs(f(np.pi * reduced.astype(np.float64)) - f(angle.astype(np.float64))).max() < 5e-7


def test_rows_are_picked_by_index() -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    picked = np.array([3, 0, 3], np.int32)
    np.testing.assert_array_equal(embedding.meaning(picked, table), table[[3, 0, 3]])
    np.testing.assert_array_equal(select_rows.meaning(table, picked), table[[3, 0, 3]])


def test_a_state_says_within_which_window_it_is_read() -> None:
    def windows(*asked: int, fuse: bool = False) -> int:
        trace = Trace()
        state = trace.input("kv", Input("state"), TensorType(("pages", 2, 2, PAGE, 64), F32))
        heads = {
            n: trace.input(n, Input("stream"), TensorType(("tokens", 2, 64), F32)) for n in ("q", "k", "v")
        }
        facts = {n: trace.input(n, Input("batch"), BATCH[n]) for n in BATCH}
        places = facts["positions"], facts["sequence"], facts["page_table"]
        cache = append(state, heads["k"], heads["v"], *places)
        batch = facts["positions"], facts["sequence"], facts["query_start"], facts["page_table"]
        outs = [attention(heads["q"], cache, *batch, scale=0.1, window=window) for window in asked]
        graph = Graph.build("test", trace.entries.values(), [t.value for t in (*outs, cache)])
        if fuse:
            graph = apply_rules(graph, RULES, Target(90, "t1", 1, 1, F32)).graph
        (described,) = states_of(graph)
        return described.window

    assert windows(100) == windows(100, fuse=True) == 100
    assert windows(100, 40) == 100
    assert windows(0) == windows(0, fuse=True) == windows(100, 0) == 0
