"""What a kernel touches before it waits for the one before it is declared, and no kernel of a step writes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from llama_shapes import SMALL

from infernum import ops
from infernum.codegen import templates
from infernum.codegen.ahead import START, WAIT, check_ahead
from infernum.codegen.emit import emit_block
from infernum.codegen.plan import plan_block
from infernum.codegen.steps import KernelStep
from infernum.codegen.weights import fold_weights
from infernum.dtypes import BF16
from infernum.errors import CompileError
from infernum.fusion import RULES
from infernum.ir.apply import apply_rules
from infernum.ir.block import BatchInputs, Tensor, Weights, block
from infernum.ir.kernel import Target, Template
from infernum.ir.op import OPS, Op, op
from infernum.models.config import understand
from infernum.models.fields import Fields
from infernum.models.llama import decoder
from infernum.models.sampler import greedy

T1 = Target(90, "t1", 1, 1, BF16)
HEAD = 'extern "C" __global__ void {{ name }}({{ signature }}) {'
WRITE = "{{ out.name }}[blockIdx.x] = {{ x.name }}[blockIdx.x];"


@pytest.fixture
def write_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which templates are found; ops that are declared meanwhile are forgotten again."""
    monkeypatch.setattr("infernum.ir.op.OPS", dict(OPS))
    monkeypatch.setattr(templates, "FOLDERS", [tmp_path])
    templates._environment.cache_clear()
    yield tmp_path
    templates._environment.cache_clear()


def copying(kernel: Template, in_place: dict[int, int] | None = None) -> Op:
    def copied(x: np.ndarray) -> np.ndarray:
        """x."""
        return x

    return op("tokens width -> tokens width", kernels=[kernel], in_place=in_place)(copied)


def emitted(folder: Path, *lines: str, ahead: tuple[str, ...] = (), from_stream: bool = False) -> str:
    """The source of a block with a kernel of these lines, behind a kernel that computes what it reads."""
    (folder / "mine.cu.j2").write_text("\n".join((HEAD, *lines, "}")))
    copied = copying(Template("mine", reads_before_wait=ahead, grid=("tokens", 1, 1)))

    @block(x="tokens hidden_size")
    def around(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: object) -> Tensor:
        return copied(x if from_stream else ops.silu(x))

    return emit_block(plan_block(around.trace(SimpleNamespace(hidden_size=64), BF16), T1), "mine")


def test_a_kernel_that_waits_before_it_reads_is_emitted(write_template: Path) -> None:
    assert WAIT in emitted(write_template, START, WAIT, WRITE)


@pytest.mark.parametrize("said", [f"// {WAIT}", f"/* {WAIT} */", f'printf("{WAIT}");'])
def test_a_wait_that_is_only_spoken_of_is_none(write_template: Path, said: str) -> None:
    with pytest.raises(
        CompileError, match=r"^mine: a kernel that may start early must call wait_for_previous_kernel"
    ):
        emitted(write_template, START, said, WRITE)


def test_what_is_read_ahead_of_the_wait_must_be_declared(write_template: Path) -> None:
    early = "const auto early = {{ x.name }}[blockIdx.x];"
    with pytest.raises(
        CompileError, match=r"^mine: templates/mine.cu.j2 uses silu_1 ahead of|uses x ahead of"
    ):
        emitted(write_template, early, WAIT, WRITE)


def test_what_is_only_spoken_of_ahead_of_the_wait_need_not_be_declared(write_template: Path) -> None:
    assert emitted(write_template, "// {{ x.name }} is read below", WAIT, WRITE)


@pytest.mark.parametrize(("from_stream", "writer"), [(False, "silu"), (True, "the block before")])
def test_nothing_that_another_kernel_of_the_step_writes_is_read_ahead(
    write_template: Path, from_stream: bool, writer: str
) -> None:
    early = "const auto early = {{ x.name }}[blockIdx.x];"
    with pytest.raises(
        CompileError, match=rf"^mine: reads x ahead of .*, but {writer} may still be writing it$"
    ):
        emitted(write_template, early, WAIT, WRITE, ahead=("x",), from_stream=from_stream)


def test_whoever_writes_what_the_next_step_reads_ahead_lets_no_kernel_start(
    write_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = greedy.trace(SimpleNamespace(vocab_size=64, hidden_size=64), BF16)
    text = (templates.templates_folder() / "advance.cu.j2").read_text()
    assert emit_block(plan_block(graph, T1), "as it is")
    templates._environment.cache_clear()
    (write_template / "advance.cu.j2").write_text(text.replace(WAIT, f"{START}\n    {WAIT}"))
    with pytest.raises(
        CompileError, match=r"^advance: writes positions, which kernels of the next step read ahead"
    ):
        emit_block(plan_block(graph, T1), "with an early start")


def test_the_cache_is_read_ahead_only_by_the_kernel_that_writes_it() -> None:
    cfg = understand(Fields(SMALL, "small")).config
    fused = apply_rules(decoder.trace(cfg, BF16), RULES, T1, normalise=fold_weights).graph
    kernels = [s for s in plan_block(fused, T1).steps if "kv" in s.writes]
    assert [kernel.name for kernel in kernels] == ["attend_cluster"]


def test_what_earlier_steps_put_into_the_cache_is_read_ahead_where_a_template_says_so() -> None:
    cfg = understand(Fields(SMALL, "small")).config
    target = Target(90, "t64", 9, 64, BF16)
    fused = apply_rules(decoder.trace(cfg, BF16), RULES, target, normalise=fold_weights).graph
    plan = plan_block(fused, target)
    kernel = next(s for s in plan.steps if isinstance(s, KernelStep) and s.template.name == "attention_units")
    text = emit_block(plan, "as it is")
    check_ahead(plan, kernel, text)
    careless = replace(kernel, template=replace(kernel.template, reads_cached=()))
    with pytest.raises(CompileError, match=r"reads kv ahead of .*, but rope_append may still be writing it"):
        check_ahead(plan, careless, text)


def test_a_kernel_beside_the_one_before_it_relies_on_that_ones_wait_and_needs_none_of_its_results(
    write_template: Path,
) -> None:
    cfg = understand(Fields(SMALL, "small")).config
    target = Target(90, "prefill", 65, 512, BF16)
    plan = plan_block(decoder.trace(cfg, BF16), target)
    beside = next(s for s in plan.steps if isinstance(s, KernelStep) and s.template.joins_previous)
    text = emit_block(plan, "as it is")
    check_ahead(plan, beside, text)
    names = {operand.name: operand for operand in beside.operands}
    needy = replace(beside, operands=(*beside.operands, replace(names["out"], const=True)))
    needing = replace(plan, steps=tuple(needy if step is beside else step for step in plan.steps))
    with pytest.raises(
        CompileError, match=r"^attention_units: runs beside attention_prefill_wgmma, which writes"
    ):
        check_ahead(needing, needy, text)
    name = "attention_prefill_wgmma.cu.j2"
    early = (templates.templates_folder() / name).read_text().replace(WAIT, f"{START}\n    {WAIT}")
    templates._environment.cache_clear()
    (write_template / name).write_text(early)
    with pytest.raises(CompileError, match=r"attention_units runs beside it and relies on its wait"):
        emit_block(plan, "with an early start")
