"""Kernels launched in clusters: their sizes, what a launch says of them, and the kernel of attention that uses them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from cuda.bindings import driver
from fake_gpu import FakeGpu, FakeModule, FakeStream
from toy_bundle import block

from infernum.codegen.cubin import KernelResources
from infernum.codegen.emit import emit_block
from infernum.codegen.nvrtc import compile_cuda, parse_arch, supported_archs
from infernum.codegen.plan import plan_block
from infernum.codegen.steps import KernelStep
from infernum.dims import evaluate
from infernum.dtypes import dtype
from infernum.fusion import attend, into_prologue
from infernum.ir.apply import apply_rules
from infernum.ir.block import BATCH
from infernum.ir.graph import TensorType
from infernum.ir.kernel import Call, Choice, Layout, RowCall, Target, choose
from infernum.ir.parse import parse_graph
from infernum.manifest import Launch, Pointer
from infernum.ops.attention_cluster import ATTEND_CLUSTER
from infernum.ops.attention_split import ATTEND
from infernum.ops.rope import rope
from infernum.roofline import GPUS
from infernum.rope import Rope
from infernum.runtime.binding import BoundProgram, Symbols
from infernum.runtime.driver import GpuFacts
from infernum.runtime.modules import Module
from infernum.runtime.stream import LaunchConfig

ARCHS = [arch for arch in supported_archs() if parse_arch(arch) >= 90]
FEW = {"t1": (1, 1), "t8": (2, 8)}
SHAPES = [
    (32, 8, 64),
    (32, 8, 128),
    (14, 2, 64),
    (71, 1, 64),
    (16, 2, 256),
    (8, 8, 16),
    (64, 64, 16),
    (4, 2, 32),
    (64, 8, 128),
]

ATTENDED = """\
graph g {
  stream %q : OF[tokens, HEADS, DIM]
  stream %k : OF[tokens, KV, DIM]
  stream %v : OF[tokens, KV, DIM]
  state %kv : OF[pages, 2, KV, 64, DIM]
  batch %positions : i32[tokens]
  batch %sequence : i32[tokens]
  batch %query_start : i32[seqs + 1]
  batch %page_table : i32[seqs, max_pages]

  %rope_1 = rope(%q, %positions) ROPE : OF[tokens, HEADS, DIM]
  %rope_2 = rope(%k, %positions) ROPE : OF[tokens, KV, DIM]
  %append_1 = append(%kv, %rope_2, %v, %positions, %sequence, %page_table) : OF[pages, 2, KV, 64, DIM]
  %attention_1 = attention(%rope_1, %append_1, %positions, %sequence, %query_start, %page_table) \
{scale = 0.25} : OF[tokens, HEADS, DIM]
  return %attention_1, %append_1
}
"""
ROPE = "{rope = Rope()}"


def target(arch: int, variant: str, of: str = "bf16") -> Target:
    low, high = FEW[variant]
    return Target(arch, variant, low, high, dtype(of))


def constants_of(call: Call, target: Target) -> Mapping[str, Any]:
    """The constants of the default layout of a cluster's kernel, its parameters among them."""
    layout = ATTEND_CLUSTER.plan(call, target)
    assert isinstance(layout, Layout)
    return {**layout.constants, **layout.parameters}


def call(heads: int, kv_heads: int, dim: int, of: str = "bf16") -> Call:
    """The call of attention over new queries, keys and values."""
    types = {name: TensorType(("tokens", n, dim), dtype(of)) for name, n in (("q", heads), ("k", kv_heads))}
    types |= {"v": types["k"], "kv": TensorType(("pages", 2, kv_heads, 64, dim), dtype(of))}
    facts = {name: BATCH[name] for name in ("positions", "sequence", "query_start", "page_table")}
    assert rope.prologue is not None
    attrs = {"rope": Rope()}
    rotated = RowCall("rope", rope.prologue, {"positions": "positions"}, attrs)
    results, rows = {"out": types["q"], "kv_out": types["kv"]}, {"q": (rotated,), "k": (rotated,)}
    return Call("attend", types | facts, results, {"scale": 0.25, "window": 0, "softcap": 0.0}, rows)


@pytest.mark.parametrize("arch", [90, 100])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
@pytest.mark.parametrize("variant", FEW)
def test_clusters_give_every_sm_at_most_one_block_and_three_quarters_of_them_where_contexts_are_long(
    arch: int, heads: int, kv_heads: int, dim: int, variant: str
) -> None:
    constants = constants_of(call(heads, kv_heads, dim), target(arch, variant))
    clusters = kv_heads * int(str(constants["HEAD_TILES"]))
    most, split, left = (int(str(constants[name])) for name in ("CLUSTER", "SPLIT", "LEFT"))
    most = min(most, dim // 4)
    low, high = FEW[variant]
    for tokens, context_pages in itertools.product(range(low, high + 1), (64, 128, 2048)):
        symbols = {"tokens": tokens, "context_pages": context_pages, "sms": GPUS[arch].sms}
        blocks, along_z = (evaluate(str(constants[name]), symbols) for name in ("BLOCKS", "Z"))
        splits, long = along_z // blocks, context_pages > 64
        sms = GPUS[arch].sms * (3 if long else 4) // 4
        assert along_z == splits * blocks and 2 <= blocks <= most
        assert clusters * tokens * along_z <= sms or (blocks, splits) == (2, 1)
        assert clusters * tokens * (splits - 1) <= left, "room for what splits leave"
        if splits > 1:
            assert long and blocks == split and splits <= 16
            assert splits == 16 or clusters * tokens * split * (splits + 1) > sms
        else:
            assert blocks == most or clusters * tokens * (blocks + 1) > sms or (long and blocks >= split)


@pytest.mark.parametrize("arch", [90, 100])
def test_contexts_are_split_only_where_the_gpu_has_room_for_all_blocks_at_once(arch: int) -> None:
    constants = constants_of(call(32, 8, 128), target(arch, "t1"))
    whole = GPUS[arch].sms

    def along_z(sms: int) -> tuple[int, int]:
        symbols = {"tokens": 1, "context_pages": 2048, "sms": sms}
        blocks, along = (evaluate(str(constants[name]), symbols) for name in ("BLOCKS", "Z"))
        return along, blocks

    of_all, blocks = along_z(whole)
    assert of_all > blocks == 4
    assert along_z(whole * 3 // 4) == (of_all, 4) and 8 * of_all <= whole * 3 // 4
    assert along_z(whole * 3 // 4 - 1) == along_z(16) == (8, 8), "a slice of a GPU: one cluster a key head"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("variant", FEW)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
@pytest.mark.parametrize("of", ["bf16", "f16"])
def test_attention_in_clusters_compiles_without_a_spill(
    arch: str, variant: str, heads: int, kv_heads: int, dim: int, of: str
) -> None:
    text = ATTENDED.replace("ROPE", ROPE)
    for name, value in (("HEADS", heads), ("KV", kv_heads), ("DIM", dim), ("OF", of)):
        text = text.replace(name, str(value))
    goal = target(parse_arch(arch), variant, of)
    plan = plan_block(apply_rules(parse_graph(text), [attend, into_prologue], goal).graph, goal)
    (step,) = plan.steps
    assert isinstance(step, KernelStep) and step.template is ATTEND_CLUSTER
    source = emit_block(plan, "test")
    found: KernelResources = compile_cuda(source, name="test.cu", arch=arch, cache=None).kernels[step.name]
    assert found.spill_bytes == 0 and found.stack_bytes == 0, found
    gpu = GPUS[goal.arch]
    block = found.static_shared_bytes + step.shared_bytes + gpu.shared_reserved
    assert block <= gpu.shared_per_sm
    assert -(-found.registers // 8) * 8 * step.threads <= gpu.registers_per_sm


@pytest.mark.parametrize(
    ("arch", "dim", "of", "reason"),
    [
        (80, 64, "bf16", "clusters of blocks exist from sm_90 on"),
        (90, 64, "f32", "tensor cores multiply bf16 and f16 here, not f32"),
        (90, 8, "bf16", "head size 8 is not a multiple of 16 up to 256"),
    ],
)
def test_what_clusters_do_not_take_goes_to_the_kernel_without(
    arch: int, dim: int, of: str, reason: str
) -> None:
    choice = choose((ATTEND_CLUSTER, ATTEND), call(4, 2, dim, of), target(arch, "t1", of))
    assert isinstance(choice, Choice) and choice.kernel is ATTEND
    assert choice.passed_over == (f"attend_cluster: {reason}",)


@pytest.mark.parametrize("variant", FEW)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
def test_the_default_and_every_other_layout_fit_on_an_sm(
    heads: int, kv_heads: int, dim: int, variant: str
) -> None:
    layouts = list(ATTEND_CLUSTER.layouts(call(heads, kv_heads, dim), target(90, variant)))
    fitting = [layout for layout in layouts if isinstance(layout, Layout)]
    assert layouts[0] is fitting[0] and len(fitting) > 1
    for layout in fitting:
        assert layout.constants["SHARED"] < GPUS[90].shared_per_sm - GPUS[90].shared_reserved


def test_a_cluster_is_an_attribute_of_the_launch_and_changes_with_the_grid() -> None:
    config = LaunchConfig(driver, 0, (128, 1, 1), 512, programmatic=True, clustered=True)
    kinds = driver.CUlaunchAttributeID
    for blocks in (8, 3):
        config.set_grid(2, 8, blocks, blocks)
        programmatic, cluster = config.raw.attrs
        assert programmatic.id == kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        assert cluster.id == kinds.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        dim = cluster.value.clusterDim
        assert (dim.x, dim.y, dim.z) == (1, 1, blocks)
        assert config.raw.numAttrs == 2
        assert config.raw.sharedMemBytes == 512


def test_without_a_cluster_a_launch_has_no_such_attribute() -> None:
    config = LaunchConfig(driver, 0, (128, 1, 1), 0, programmatic=False, clustered=False)
    config.set_grid(2, 8, 1)
    assert config.raw.numAttrs == 0


def test_the_size_of_a_cluster_is_worked_out_for_each_step() -> None:
    seen: list[tuple[object, ...]] = []
    stream = FakeStream(FakeGpu({}))
    stream.launch = lambda config, kernel, params: seen.append(
        (config.clustered, config.grid, config.shared_bytes, config.cluster)
    )  # type: ignore[method-assign, assignment, misc]
    symbols = Symbols(max_pages=4, pages=4, sms=4)
    blocks = "(4 if context_pages > 64 else max(2, 8 // tokens))"
    clustered = Launch(
        kernel="k",
        args=[Pointer(tensor="x")],
        grid=["tokens", 1, blocks],
        block=[32],
        shared_bytes=1024,
        cluster=blocks,
    )
    plain = Launch(kernel="k", args=[Pointer(tensor="x")], grid=["tokens"], block=[32])
    program = BoundProgram(stream, symbols, None)  # type: ignore[arg-type]
    program.append(block("b", "t8", [clustered, plain]), FakeModule({"k": ("p", print)}), {"x": 0})  # type: ignore[dict-item]
    for tokens, context_pages in ((2, 64), (8, 64), (8, 128)):
        symbols.set(tokens, tokens, tokens, context_pages)
        program.queue()
    assert seen == [
        (True, (2, 1, 4), 1024, 4),
        (False, (2, 1, 1), 0, 1),
        (True, (8, 1, 2), 1024, 2),
        (False, (8, 1, 1), 0, 1),
        (True, (8, 1, 4), 1024, 4),
        (False, (8, 1, 1), 0, 1),
    ]


class Api:
    """The driver's calls that a module makes, and the attributes that it sets."""

    CUfunction_attribute = driver.CUfunction_attribute

    def __init__(self) -> None:
        self.set: dict[str, int] = {}

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, str]:
        return driver.CUresult.CUDA_SUCCESS, "module"

    def cuModuleGetFunction(self, module: str, name: bytes) -> tuple[Any, str]:
        return driver.CUresult.CUDA_SUCCESS, name.decode()

    def cuFuncSetAttribute(self, kernel: str, which: Any, value: int) -> tuple[Any]:
        self.set[which.name.removeprefix("CU_FUNC_ATTRIBUTE_")] = value
        return (driver.CUresult.CUDA_SUCCESS,)


def test_all_kernels_divide_an_sm_alike() -> None:
    alike = {"PREFERRED_SHARED_MEMORY_CARVEOUT": 100}
    for shared, expected in ((0, alike), (50_000, alike | {"MAX_DYNAMIC_SHARED_SIZE_BYTES": 50_000})):
        api = Api()
        module = Module(api, b"", "m.cubin", GpuFacts(0, "a GPU", (9, 0), 132, 227 * 1024, 2**37))
        assert module.kernel("k", shared) == "k"
        assert api.set == expected
        api.set.clear()
        assert module.kernel("k", shared) == "k" and not api.set, "once is enough"
