"""How ranks exchange words: a model of the protocol under random interleavings, and the emitted kernels as C++."""

from __future__ import annotations

import ctypes
import random
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from host_bench import COMPILER, kernels_for_host

from infernum.codegen.emit import emit_block
from infernum.codegen.nvrtc import compile_cuda, supported_archs
from infernum.codegen.plan import plan_block
from infernum.codegen.steps import KernelStep
from infernum.codegen.weights import fold_weights
from infernum.dims import evaluate
from infernum.dtypes import BF16, F32, DType
from infernum.fusion import RULES
from infernum.ir.apply import apply_rules
from infernum.ir.block import Tensor, block
from infernum.ir.kernel import Target
from infernum.ops import add, gather_ranks, sum_ranks

# ---- the protocol


@dataclass
class Rules:
    """What makes the protocol right; a test leaves out one of them."""

    inboxes: int = 2
    numbered: bool = True
    waits_for_the_kernel_before: bool = True


@dataclass
class Rank:
    """A rank: its counter, its inboxes, what has been sent to it and has not come, and what its kernels have read."""

    number: int = 0
    arrived: int = 0
    inbox: dict[tuple[int, int, int], tuple[int, int]] = field(default_factory=dict)
    late: list[tuple[tuple[int, int, int], tuple[int, int]]] = field(default_factory=list)
    read: dict[tuple[int, int, int], int] = field(default_factory=dict)


class Stuck(Exception):
    """Nothing can go on."""


def word(rank: int, exchange: int, index: int) -> int:
    """What a rank sends in an exchange: no two words are equal."""
    return (exchange * 64 + index) * 8 + rank


def block_of(
    ranks: list[Rank], me: int, exchange: int, own: range, blocks: int, rules: Rules
) -> Generator[bool]:
    """A block of a kernel, as exchange.cuh has it, one access to memory at a time. It yields True where it waited."""
    mine = ranks[me]
    number = mine.number + 1
    yield False
    mine.arrived += 1
    if mine.arrived == blocks:
        mine.arrived, mine.number = 0, number
    yield False
    slot = number % rules.inboxes
    for index in own:
        for to, other in enumerate(ranks):
            if to != me:
                other.late.append(((slot, me, index), (number, word(me, exchange, index))))
                yield False
    for index in own:
        for source in range(len(ranks)):
            if source == me:
                continue
            place = (slot, source, index)
            while place not in mine.inbox or (rules.numbered and mine.inbox[place][0] != number):
                yield True
            mine.read[exchange, source, index] = mine.inbox[place][1]
            yield False


def run(
    sizes: list[tuple[int, int]],
    count: int,
    draw: random.Random,
    rules: Rules | None = None,
    dead: tuple[int, int] | None = None,
    ranks: list[Rank] | None = None,
    first: int = 0,
) -> list[Rank]:
    """Every rank runs exchanges of so many words and blocks, one after the other; words come late, in any order.

    `dead`: a rank that begins no exchange from one on. Raises Stuck when all wait and nothing is on its way.
    """
    chosen = rules or Rules()
    ranks = ranks or [Rank() for _ in range(count)]
    queues = [list(enumerate(sizes, first)) for _ in range(count)]
    running: list[list[Generator[bool]]] = [[] for _ in range(count)]
    waited = 0
    while any(running) or any(queues) or any(rank.late for rank in ranks):
        me = draw.randrange(count)
        if ranks[me].late and draw.random() < 0.3:
            place, sent = ranks[me].late.pop(draw.randrange(len(ranks[me].late)))
            ranks[me].inbox[place] = sent
            waited = 0
            continue
        may_begin = not running[me] or not chosen.waits_for_the_kernel_before
        if queues[me] and may_begin and not (dead and dead[0] == me and queues[me][0][0] >= dead[1]):
            exchange, (words, blocks) = queues[me].pop(0)
            shares = [range(i, words, blocks) for i in range(blocks)]
            running[me] += [block_of(ranks, me, exchange, own, blocks, chosen) for own in shares]
        elif running[me]:
            one = draw.choice(running[me])
            try:
                waited = waited + 1 if next(one) else 0
            except StopIteration:
                running[me].remove(one)
                waited = 0
        else:
            waited += 1
        if waited > 2000 and not any(rank.late for rank in ranks):
            raise Stuck
    return ranks


def check(ranks: list[Rank], sizes: list[tuple[int, int]], first: int = 0) -> None:
    for rank in range(len(ranks)):
        expected = {
            (exchange, source, index): word(source, exchange, index)
            for exchange, (words, _) in enumerate(sizes, first)
            for source in range(len(ranks))
            for index in range(words)
            if source != rank
        }
        found = {place: read for place, read in ranks[rank].read.items() if place[0] >= first}
        assert found == expected


def sizes_of(draw: random.Random) -> list[tuple[int, int]]:
    return [(draw.choice((1, 2, 5, 8)), draw.choice((1, 2, 3))) for _ in range(draw.randint(3, 9))]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_rank_reads_what_the_others_sent_in_this_exchange(count: int) -> None:
    for seed in range(120):
        draw = random.Random(f"{count} {seed}")
        sizes = sizes_of(draw)
        check(run(sizes, count, draw), sizes)


BROKEN = {
    "one inbox": Rules(inboxes=1),
    "words without numbers": Rules(numbered=False),
    "kernels that do not wait for each other": Rules(waits_for_the_kernel_before=False),
}


@pytest.mark.parametrize("what", BROKEN)
def test_nothing_of_the_protocol_can_be_left_out(what: str) -> None:
    wrong = 0
    for seed in range(120):
        draw = random.Random(seed)
        sizes = sizes_of(draw)
        try:
            check(run(sizes, 3, draw, BROKEN[what]), sizes)
        except (AssertionError, Stuck):
            wrong += 1
    assert wrong > 10, wrong


def test_a_rank_that_begins_no_exchange_leaves_all_others_waiting_in_it_or_in_the_one_before() -> None:
    """So each of them traps, and no wait is without an end."""
    for seed in range(40):
        draw = random.Random(seed)
        with pytest.raises(Stuck):
            run([(4, 2)] * 6, 3, draw, dead=(1, 3))


@pytest.mark.parametrize("reset", [True, False])
def test_after_a_step_that_was_cut_short_the_ranks_begin_anew(reset: bool) -> None:
    """Without it they number their exchanges differently, and wait for ever."""
    ended = 0
    for seed in range(40):
        draw = random.Random(seed)
        ranks = [Rank() for _ in range(3)]
        with pytest.raises(Stuck):
            run([(4, 2)] * 5, 3, draw, dead=(1, 2), ranks=ranks)
        for rank in ranks:
            rank.late.clear()
            if reset:
                rank.number, rank.arrived, rank.inbox = 0, 0, {}
        sizes = [(3, 2), (5, 1), (2, 2)]
        try:
            check(run(sizes, 3, draw, ranks=ranks, first=100), sizes, first=100)
            ended += 1
        except Stuck:
            pass
    assert ended == (40 if reset else 0)


# ---- the kernels

WIDTH, CAPACITY, SMS = 96, 96 * 40, 3


@block(x="f32 tokens hidden_size", residual="tokens hidden_size")
def summed(x: Tensor, residual: Tensor, *, batch: Any, w: Any, cfg: Any) -> Tensor:
    total = add(sum_ranks(x, ranks=cfg.ranks, out=residual.dtype.name), w.tensor("bias", cfg.hidden_size))
    return add(residual, total)


@block(x="f32 tokens hidden_size")
def gathering(x: Tensor, *, batch: Any, w: Any, cfg: Any) -> Tensor:
    return gather_ranks(x, ranks=cfg.ranks)


def kernel_of(
    declared: Any, ranks: int, dtype: DType = F32, arch: int = 80, width: int = WIDTH
) -> tuple[KernelStep, str]:
    """The one kernel of a block, and the file that it is emitted in."""
    graph = declared.trace(SimpleNamespace(hidden_size=width, ranks=ranks), dtype, ranks)
    target = Target(arch, "t64", 9, 64, dtype)
    plan = plan_block(apply_rules(graph, RULES, target, normalise=fold_weights).graph, target)
    (step,) = plan.steps
    assert isinstance(step, KernelStep)
    return step, emit_block(plan, "g")


class Record(ctypes.Structure):
    """`Exchange` of exchange.cuh."""

    _fields_ = [
        ("number", ctypes.c_uint),
        ("arrived", ctypes.c_uint),
        ("rank", ctypes.c_uint),
        ("capacity", ctypes.c_uint),
        ("inboxes", ctypes.c_ulonglong * 8),
    ]


def records(ranks: int) -> tuple[list[Record], list[np.ndarray]]:
    inboxes = [np.zeros(2 * ranks * CAPACITY + 2, np.uint64) for _ in range(ranks)]
    places = [inbox.ctypes.data + -inbox.ctypes.data % 16 for inbox in inboxes]
    made = [Record(0, 0, rank, CAPACITY, (ctypes.c_ulonglong * 8)(*places)) for rank in range(ranks)]
    return made, inboxes


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(("declared", "ranks"), [(summed, 2), (summed, 3), (gathering, 3)])
def test_kernels_of_several_ranks_that_run_at_once_compute_what_the_op_means(
    declared: Any, ranks: int, tmp_path: Path
) -> None:
    """Each rank in a thread of its own, with the emitted kernel: many exchanges, one after the other, of all sizes."""
    step, source = kernel_of(declared, ranks)
    draw = np.random.default_rng(ranks)
    sizes = [int(draw.choice([1, 2, 17])) for _ in range(8)]
    xs = [draw.standard_normal((ranks, tokens, WIDTH), np.float32) for tokens in sizes]
    residuals = [draw.standard_normal((tokens, WIDTH), np.float32) for tokens in sizes]
    bias = draw.standard_normal(WIDTH, np.float32)
    exchanges, kept = records(ranks)
    width = WIDTH if declared is summed else ranks * WIDTH
    outs = [[np.full((tokens, width), np.nan, np.float32) for tokens in sizes] for _ in range(ranks)]
    launches = [
        getattr(kernels_for_host(source, tmp_path / str(rank)), f"host_{step.name}") for rank in range(ranks)
    ]

    def run_rank(rank: int) -> None:
        for number, tokens in enumerate(sizes):
            arrays = {"x": xs[number][rank], "residual": residuals[number], "bias": bias}
            pointers = [arrays.get(o.place.tensor, outs[rank][number]).ctypes.data for o in step.operands]
            pointers.append(ctypes.addressof(exchanges[rank]))
            grid = (ctypes.c_int * 3)(evaluate(step.grid[0], {"tokens": tokens, "sms": SMS}), 1, 1)
            launches[rank](grid, step.threads, (ctypes.c_uint64 * (len(pointers) + 1))(*pointers, tokens))

    threads = [threading.Thread(target=run_rank, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [record.number for record in exchanges] == [len(sizes)] * ranks and kept
    for number, residual in enumerate(residuals):
        parts = xs[number]
        if declared is summed:
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            expected = residual + (total + bias)
        else:
            expected = np.concatenate(list(parts), axis=1)
        for rank in range(ranks):
            assert np.array_equal(outs[rank][number], expected), (number, rank)


WAITS = """
import ctypes, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_exchange import WIDTH, gathering, kernel_of, kernels_for_host, records
step, source = kernel_of(gathering, 2)
launch = getattr(kernels_for_host(source, Path(sys.argv[2])), f"host_{step.name}")
exchanges, inboxes = records(2)
x, out = np.zeros((1, WIDTH), np.float32), np.zeros((1, 2 * WIDTH), np.float32)
pointers = [x.ctypes.data, out.ctypes.data, ctypes.addressof(exchanges[0]), 1]
print("begun", flush=True)
launch((ctypes.c_int * 3)(1, 1, 1), step.threads, (ctypes.c_uint64 * 4)(*pointers))
"""


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_a_kernel_whose_peer_never_answers_traps_after_one_and_a_half_seconds(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WAITS, str(Path(__file__).parent), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        begin = time.monotonic()
        assert process.wait(20) == -6, "the trap is an abort here"
        assert time.monotonic() - begin > 1.4  # of a clock of 2 GHz; a busy machine takes longer


@pytest.mark.parametrize(
    "arch", [arch for arch in ("sm_80", "sm_90a", "sm_100a") if arch in supported_archs()]
)
@pytest.mark.parametrize("ranks", [2, 8])
def test_the_kernels_compile_without_a_spill(arch: str, ranks: int) -> None:
    for declared in (summed, gathering):
        _, source = kernel_of(declared, ranks, BF16, int(arch[3:].rstrip("a")))
        cubin = compile_cuda(source, name="exchange.cu", arch=arch, cache=None)
        assert all(used.spill_bytes == 0 == used.stack_bytes for used in cubin.kernels.values())


def test_the_residual_and_a_bias_are_added_by_the_kernel_that_sums() -> None:
    step, source = kernel_of(summed, 2, BF16)
    assert step.template.name == "sum_ranks" and step.exchanged == f"tokens * {WIDTH}"
    assert [o.place.tensor for o in step.operands][:3] == ["x", "bias", "residual"]
    assert "round_to<bf16_t>(total[v])" in source, (
        "the sum is rounded before anything is added, as on one GPU"
    )
