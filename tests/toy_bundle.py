"""A bundle of a tiny invented model, its kernels in Python for `fake_gpu`, and what it should compute.

Each layer caches its input and adds the mean of all cached ones, scaled; logits come from the tied embedding.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from fake_gpu import at

from infernum import ops
from infernum.bundle import Bundle, write_bundle
from infernum.dtypes import F32, DType
from infernum.manifest import (
    ANY,
    SCHEMA,
    BlockVariant,
    Buffer,
    Gemm,
    Launch,
    Manifest,
    ModelInfo,
    Pointer,
    Stage,
    State,
    Step,
    SymbolArg,
    TensorSpec,
    VariantSpec,
    Weight,
)
from infernum.ops.sampling import argmax
from infernum.recipes import read, stack
from infernum.sampling_params import MOST_LOGPROBS
from infernum.step import Batch, Sampling, TableRow

WIDTH, VOCAB, LAYERS, PAGE, CONTEXT = 8, 40, 3, 4, 24
VARIANTS = [
    VariantSpec(name="t1", min_tokens=1, max_tokens=1, max_rows=1),
    VariantSpec(name="prefill", min_tokens=2, max_tokens=12, max_rows=4),
]


def spec(name: str, *shape: int | str, dtype: str = "f32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=list(shape))


def weight(name: str, parts: list[str], *shape: int) -> Weight:
    part_shape = (shape[0] // len(parts), *shape[1:])
    return Weight(spec=spec(name, *shape), recipe=stack(read(part, *part_shape) for part in parts))


def launch(kernel: str, *args: str, grid: int | str = 1) -> Launch:
    bound = [SymbolArg(symbol=a[1:]) if a[0] == "$" else Pointer(tensor=a) for a in args]
    return Launch(kernel=kernel, args=bound, grid=[grid], block=[32], programmatic=True)


def block(
    name: str,
    variant: str,
    steps: list[Step],
    *,
    stream_in: list[TensorSpec] | None = None,
    stream_out: list[TensorSpec] | None = None,
    batch: list[TensorSpec] | None = None,
    state: list[TensorSpec] | None = None,
    buffers: dict[str, Buffer] | None = None,
    weights: list[Weight] | None = None,
) -> BlockVariant:
    file = f"{name}.{variant}"
    return BlockVariant(
        block=name,
        variant=variant,
        source=f"{file}.cu",
        shared_hash="",
        cubin=f"{file}.cubin",
        traced=f"{name}.traced.ir",
        graph=f"{file}.ir",
        stream_in=stream_in or [],
        stream_out=stream_out or [],
        batch=batch or [],
        state=state or [],
        buffers=buffers or {},
        weights={w.spec.name: w for w in weights or []},
        arena_bytes=4096 if buffers else 0,
        steps=steps,
        kernels=[],
        kernels_before_fusion=0,
        fired={},
        firings=[],
        refused=[],
    )


TABLE = weight("table", ["embed.weight"], VOCAB, WIDTH)
X, Y = spec("x", "tokens", WIDTH), spec("y", "tokens", WIDTH)
LOGITS = spec("logits", "rows", VOCAB)


def tokens_of(name: str) -> TensorSpec:
    return spec(name, "tokens", dtype="i32")


def rows_of(name: str, dtype: str = "i32") -> TensorSpec:
    return spec(name, "rows", dtype=dtype)


PAGE_TABLE = spec("page_table", "seqs", "max_pages", dtype="i32")
NEXT = rows_of("next_tokens")


def model_blocks(variant: str) -> list[BlockVariant]:
    embed = [launch("embed", "x", "table", "token_ids", grid="tokens")]
    decoder: list[Step] = [
        launch("append", "kv", "x", "positions", "sequence", "page_table", "$max_pages", grid="tokens"),
        launch("mean", "h", "kv", "positions", "sequence", "page_table", "$max_pages", grid="tokens"),
        launch("scale_add", "y", "x", "h", "scale", "$tokens", grid="ceildiv(tokens, 2)"),
    ]
    head: list[Step] = [
        launch("gather", "g", "y", "output_rows", "$rows", grid="rows"),
        Gemm(
            name="logits",
            x=Pointer(tensor="g"),
            weight=Pointer(tensor="table"),
            out=Pointer(tensor="logits"),
            m="rows",
            n=VOCAB,
            k=WIDTH,
            x_stride=WIDTH,
            out_stride=VOCAB,
            dtype="f32",
            out_dtype="f32",
        ),
    ]
    return [
        block("embed", variant, embed, stream_out=[X], batch=[tokens_of("token_ids")], weights=[TABLE]),
        block(
            "decoder",
            variant,
            decoder,
            stream_in=[X],
            stream_out=[Y],
            batch=[tokens_of("positions"), tokens_of("sequence"), PAGE_TABLE],
            state=[State(name="kv", dtype="f32", shape=["pages", 2, 1, PAGE, WIDTH])],
            buffers={"h": Buffer(spec=spec("h", "tokens", WIDTH), offset=256)},
            weights=[weight("scale", ["layers.{layer}.scale"], WIDTH)],
        ),
        block(
            "head",
            variant,
            head,
            stream_in=[Y],
            stream_out=[LOGITS],
            batch=[rows_of("output_rows")],
            buffers={"g": Buffer(spec=spec("g", "rows", WIDTH), offset=512)},
            weights=[TABLE],
        ),
    ]


def logprobs() -> BlockVariant:
    shape = ("rows", 1 + MOST_LOGPROBS)
    outputs = [spec("logprob_tokens", *shape, dtype="i32"), spec("logprobs", *shape)]
    operands = ("logits", "next_tokens", "scored_token", "logprob_tokens", "logprobs")
    step, scored = launch("logprobs", *operands, grid="rows"), rows_of("scored_token")
    return block("logprobs", ANY, [step], stream_in=[LOGITS, NEXT], stream_out=outputs, batch=[scored])


def samplers() -> list[BlockVariant]:
    sampled = [tokens_of("token_ids"), tokens_of("positions"), rows_of("output_rows")]
    greedy = launch("greedy", "argmax", "logits", "token_ids", "positions", "output_rows", grid="rows")
    sample = launch(
        "sample",
        *(
            "next_tokens",
            "logits",
            "token_ids",
            "positions",
            "output_rows",
            "seed",
            "counts",
            "counts_row",
            "temperature",
        ),
        grid="rows",
    )
    counts = spec("counts", "min(table_rows, 256)", VOCAB, dtype="i32")
    more = [rows_of("seed"), counts, rows_of("counts_row"), rows_of("temperature", "f32")]
    return [
        block("greedy", ANY, [greedy], stream_in=[LOGITS], stream_out=[rows_of("argmax")], batch=sampled),
        block("sample", ANY, [sample], stream_in=[LOGITS], stream_out=[NEXT], batch=[*sampled, *more]),
    ]


def toy_manifest(arch: str = "sm_90a") -> Manifest:
    compiled: dict[str, dict[str, BlockVariant]] = {}
    for each in [*(b for variant in VARIANTS for b in model_blocks(variant.name)), *samplers(), logprobs()]:
        compiled.setdefault(each.block, {})[each.variant] = each
    model = ModelInfo(
        family="toy",
        name="toy",
        config={},
        config_hash="",
        vocab_size=VOCAB,
        context=CONTEXT,
        num_layers=LAYERS,
    )
    decoders = [Stage(block="decoder", layer=layer) for layer in range(LAYERS)]
    return Manifest(
        schema=SCHEMA,
        infernum="0",
        nvrtc="",
        arch=arch,
        dtype="f32",
        fuse=True,
        rules=[],
        page_size=PAGE,
        model=model,
        variants=VARIANTS,
        program=[Stage(block="embed"), *decoders, Stage(block="head")],
        samplers=["greedy", "sample"],
        plugins=[],
        edits={},
        blocks=compiled,
    )


def toy_bundle(folder: Path, manifest: Manifest | None = None) -> Bundle:
    manifest = manifest or toy_manifest()
    files = {v.cubin: b"" for variants in manifest.blocks.values() for v in variants.values()}
    return write_bundle(folder / "toy", manifest, files)


class ToyCheckpoint:
    """Random float32 weights of the toy model."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        table = rng.normal(size=(VOCAB, WIDTH))
        table /= np.linalg.norm(table, axis=1, keepdims=True)  # or the longest row would always win
        self.tensors = {"embed.weight": table.astype(np.float32)}
        for layer in range(LAYERS):
            self.tensors[f"layers.{layer}.scale"] = rng.normal(scale=2, size=WIDTH).astype(np.float32)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def dtype(self, name: str) -> DType:
        return F32

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return self.tensors[name][start:stop]

    def logits(self, tokens: list[int]) -> np.ndarray:
        """What the toy model makes of a sequence, [tokens, vocab]."""
        x = self.tensors["embed.weight"][tokens]
        for layer in range(LAYERS):
            means = np.cumsum(x, axis=0) / np.arange(1, len(x) + 1)[:, None]
            x = x + means * self.tensors[f"layers.{layer}.scale"]
        return x @ self.tensors["embed.weight"].T


def _cache_row(kv: int, page: int, position: int) -> np.ndarray:
    assert page >= 0, "a position without a page was used"
    return at(kv + page * 2 * PAGE * WIDTH * 4, np.float32, 2, PAGE, WIDTH)[0, position % PAGE]


def _embed(grid: tuple[int, ...], x: int, table: int, ids: int) -> None:
    tokens = grid[0]
    at(x, np.float32, tokens, WIDTH)[:] = at(table, np.float32, VOCAB, WIDTH)[at(ids, np.int32, tokens)]


def _append(
    grid: tuple[int, ...], kv: int, x: int, positions: int, sequence: int, table: int, columns: int
) -> None:
    for t in range(grid[0]):
        position, row = at(positions, np.int32, grid[0])[t], at(sequence, np.int32, grid[0])[t]
        page = at(table + 4 * columns * int(row), np.int32, columns)[position // PAGE]
        _cache_row(kv, int(page), int(position))[:] = at(x, np.float32, grid[0], WIDTH)[t]


def _mean(
    grid: tuple[int, ...], h: int, kv: int, positions: int, sequence: int, table: int, columns: int
) -> None:
    for t in range(grid[0]):
        position, row = at(positions, np.int32, grid[0])[t], at(sequence, np.int32, grid[0])[t]
        pages = at(table + 4 * columns * int(row), np.int32, columns)
        cached = [_cache_row(kv, int(pages[p // PAGE]), p) for p in range(position + 1)]
        at(h, np.float32, grid[0], WIDTH)[t] = np.mean(cached, axis=0)


def _scale_add(grid: tuple[int, ...], y: int, x: int, h: int, scale: int, tokens: int) -> None:
    assert grid[0] == -(-tokens // 2)
    at(y, np.float32, tokens, WIDTH)[:] = np.nan  # a stage that reads the buffer it writes gets NaN
    shape = (tokens, WIDTH)
    scaled = at(h, np.float32, *shape) * at(scale, np.float32, WIDTH)
    at(y, np.float32, *shape)[:] = at(x, np.float32, *shape) + scaled


def _gather(grid: tuple[int, ...], g: int, y: int, output_rows: int, rows: int) -> None:
    assert grid[0] == rows
    for row, token in enumerate(at(output_rows, np.int32, rows)):
        at(g, np.float32, rows, WIDTH)[row] = at(y + 4 * WIDTH * int(token), np.float32, WIDTH)


def _emit(row: int, token: int, next_tokens: int, ids: int, positions: int) -> None:
    at(next_tokens, np.int32, row + 1)[row] = token
    at(ids, np.int32, row + 1)[row] = max(0, token)
    at(positions, np.int32, row + 1)[row] += 1


def _greedy(
    grid: tuple[int, ...], next_tokens: int, logits: int, ids: int, positions: int, output_rows: int
) -> None:
    tokens = argmax.meaning(at(logits, np.float32, grid[0], VOCAB))
    for row, token in enumerate(tokens.tolist()):
        _emit(row, token, next_tokens, ids, positions)


def _sample(grid: tuple[int, ...], *pointers: int) -> None:
    next_tokens, logits, ids, positions, _output_rows, seed, counts, counts_row, temperature = pointers
    for row in range(grid[0]):
        scores = at(logits, np.float32, grid[0], VOCAB)[row].copy()
        counted = int(at(counts_row, np.int32, grid[0])[row])
        own = np.zeros(VOCAB, np.int32) if counted < 0 else at(counts, np.int32, counted + 1, VOCAB)[counted]
        scores[own > 0] = -np.inf
        shift = int(at(seed, np.int32, grid[0])[row]) + int(at(temperature, np.float32, grid[0])[row])
        token = (int(np.argmax(scores)) + shift) % VOCAB
        own[token] += 2
        _emit(row, token, next_tokens, ids, positions)


def _logprobs(
    grid: tuple[int, ...], logits: int, next_tokens: int, scored_token: int, tokens: int, values: int
) -> None:
    rows, columns = grid[0], 1 + MOST_LOGPROBS
    found = ops.logprobs.meaning(
        at(logits, np.float32, rows, VOCAB),
        at(next_tokens, np.int32, rows),
        at(scored_token, np.int32, rows),
    )
    at(tokens, np.int32, rows, columns)[:], at(values, np.float32, rows, columns)[:] = found


KERNELS = {
    "logprobs": ("ppppp", _logprobs),
    "embed": ("ppp", _embed),
    "append": ("pppppi", _append),
    "mean": ("pppppi", _mean),
    "scale_add": ("ppppi", _scale_add),
    "gather": ("pppi", _gather),
    "greedy": ("ppppp", _greedy),
    "sample": ("ppppppppp", _sample),
}


def step(sequences: list[list[int]], new: list[int], pages: list[list[int]]) -> Batch:
    """A step of the last `new[s]` tokens of each sequence; logits are wanted of each one's last token."""
    ids = [token for tokens, n in zip(sequences, new, strict=True) for token in tokens[len(tokens) - n :]]
    positions = [
        p for tokens, n in zip(sequences, new, strict=True) for p in range(len(tokens) - n, len(tokens))
    ]
    rows = [s for s, n in enumerate(new) for _ in range(n)]
    start = np.concatenate([[0], np.cumsum(new)])
    arrays = (ids, positions, rows, start, pages, start[1:] - 1)
    return Batch(*(np.asarray(values, np.int32) for values in arrays))


def greedy(rows: int) -> Sampling:
    return sampling(rows, temperature=0.0, seed=0)


def sampling(rows: int, *, temperature: float, seed: int, counts: np.ndarray | None = None) -> Sampling:
    """Rows of one temperature and seed; with `counts`, int32 [vocab], each has these in a row of its own."""
    chosen = {
        "temperature": np.full(rows, temperature, np.float32),
        "seed": np.full(rows, seed, np.int32),
    }
    plain = Sampling({**Sampling.off(rows).parameters, **chosen})
    if counts is None:
        return plain
    writes = tuple(TableRow("counts", row, counts.copy()) for row in range(rows))
    return replace(plain, table_rows={"counts_row": np.arange(rows, dtype=np.int32)}, writes=writes)
