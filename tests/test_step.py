"""The table of a step's inputs: whatever lists them lists all of them, and a sampling parameter stands in few files."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import pytest
import toy_bundle as toy
from conftest import Tiny
from fake_gpu import FakeGpu, at

import infernum
from infernum import ops
from infernum.checkpoint import Checkpoint
from infernum.cli import options
from infernum.cpu.executor import CpuExecutor
from infernum.dtypes import F32, I32
from infernum.errors import BundleError
from infernum.ir.block import BATCH, RESERVED, BatchInputs
from infernum.ir.graph import TensorType
from infernum.ir.trace import Trace
from infernum.lab.verify.facts import ragged_step
from infernum.lab.verify.rule_values import InputValues, RuleTrial
from infernum.manifest import TensorSpec
from infernum.models.sampler import sample
from infernum.ops.sampling import kept_weights
from infernum.resources import templates_folder
from infernum.runtime.inputs import Inputs
from infernum.runtime.layout import Limits
from infernum.sampling_params import EXCLUDING, GREEDY, PARAMETERS, SamplingParameter, SamplingParams, listed
from infernum.step import (
    BATCH_INPUTS,
    INPUTS,
    PARAMETER_INPUTS,
    TABLE_ROW_INPUTS,
    TABLES,
    Batch,
    Sampling,
    StepInput,
    TableRow,
    check_input,
)

NAMES = [parameter.name for parameter in PARAMETERS]

MOST_FILES = {
    # Decoding is greedy at temperature 0: commands and measurements that offer both have to name it.
    "temperature": 16,
}
"""Files that may name a sampling parameter, where five are not enough."""


@pytest.mark.parametrize("name", [name for name in NAMES if name != "seed"])  # all that is random has a seed
def test_a_sampling_parameter_is_named_in_few_files(name: str) -> None:
    word = re.compile(rf"\b{name.replace('_', '[-_]')}\b", re.IGNORECASE)
    package = Path(infernum.__file__).parent
    sources = [
        *package.rglob("*.py"),
        *package.rglob("*.js"),
        *package.rglob("*.html"),
        *templates_folder().rglob("*.cu*"),
    ]
    sources = [
        path for path in sources if path.parent != package / "serve"
    ]  # it names what requests may hold
    naming = sorted({path.as_posix() for path in sources if word.search(path.read_text(encoding="utf-8"))})
    assert naming, f"nothing names {name}"
    assert len(naming) <= MOST_FILES.get(name, 5), f"{name} is named in {', '.join(naming)}"


def test_every_input_has_a_name_of_its_own_that_no_weight_may_have() -> None:
    names = [item.name for item in INPUTS]
    assert len(set(names)) == len(names)
    assert set(names) <= RESERVED


def test_blocks_may_read_every_input_by_its_type() -> None:
    tables = {table.name for table in TABLES}
    assert set(BATCH) | tables == {item.name for item in INPUTS}
    read = BatchInputs(Trace(), F32).tables(40)
    assert {name: str(tensor.type) for name, tensor in read.items()} == {
        "counts": "i32[min(table_rows, 256), 40]",
        "logit_bias": "f32[min(table_rows, 64), 40]",
        "allowed": "i32[table_rows, 2]",
    }
    assert BATCH["query_start"] == TensorType(("seqs + 1",), I32)
    assert BATCH["temperature"] == TensorType(("rows",), F32)


def test_batch_and_sampling_hold_every_input() -> None:
    assert [field.name for field in fields(Batch)] == [*(item.name for item in BATCH_INPUTS), "windowed"]
    batch = toy.step([[1, 2]], [2], [[0]])
    held = batch.arrays() | toy.greedy(1).arrays()
    assert {*held, *(table.name for table in TABLES)} == {item.name for item in INPUTS}
    assert all(held[item.name].tolist() == [-1] for item in TABLE_ROW_INPUTS)
    for item in BATCH_INPUTS:
        assert held[item.name] is getattr(batch, item.name)


def test_an_upload_puts_every_input_where_its_address_says() -> None:
    gpu: Any = FakeGpu({})
    stream = gpu.stream()
    sizes = {"tokens": 3, "seqs": 2, "rows": 2, "max_pages": 4, "vocab": 40}
    batch = toy.step([[1, 2], [3]], [2, 1], [[0, 5, -1, -1], [7, -1, -1, -1]])
    rng = np.random.default_rng(0)
    tables = {
        table.name: rng.integers(0, 9, table.shape({"table_rows": 2, "vocab": 40})).astype(table.dtype.numpy)
        for table in TABLES
    }
    writes = tuple(TableRow(name, row, values[row]) for name, values in tables.items() for row in (1, 0))
    rows = {item.name: np.array([1, -1], np.int32) for item in TABLE_ROW_INPUTS}
    sampling = replace(Sampling.of([(SamplingParams(top_k=5), 6)] * 2), table_rows=rows, writes=writes)
    with ExitStack() as stack:
        inputs = Inputs(gpu, stream, Limits(**sizes), stack)
        inputs.upload(batch, sampling)
        stream.synchronize()
        values = batch.arrays() | sampling.arrays() | tables
        for item in INPUTS:
            shape = item.shape({**sizes, "table_rows": sizes["rows"]})
            uploaded = at(inputs.addresses[item.name], item.dtype.numpy, *shape)
            np.testing.assert_array_equal(uploaded, values[item.name], item.name)


def test_an_upload_puts_the_page_table_of_each_cache_group_where_its_address_says() -> None:
    gpu: Any = FakeGpu({})
    stream = gpu.stream()
    batch = toy.step([[1, 2], [3]], [2, 1], [[0, 5, 6, -1], [7, -1, -1, -1]])
    behind = np.array([[[-1, 8, 9, -1], [3, -1, -1, -1]], [[-1, -1, 2, -1], [1, -1, -1, -1]]], np.int32)
    with ExitStack() as stack:
        inputs = Inputs(gpu, stream, Limits(3, 2, 2, 4, 40), stack, groups=3)
        for windowed in (behind, None):
            inputs.upload(replace(batch, windowed=windowed), None)
            stream.synchronize()
            tables = [at(inputs.page_table(group), np.int32, 2, 4) for group in range(3)]
            own = [batch.page_table] * 2 if windowed is None else windowed
            np.testing.assert_array_equal(tables, [batch.page_table, *own])


def test_verify_draws_every_input_in_its_shape_and_type() -> None:
    vocab = 131
    step = ragged_step(((211, 2), (64, 6), (0, 1)), vocab, np.random.default_rng(0))
    assert set(step.arrays) == {item.name for item in INPUTS}
    for item in INPUTS:
        array = step.arrays[item.name]
        assert (array.dtype, array.shape) == (item.dtype.numpy, item.shape({**step.symbols, "vocab": vocab}))


def test_checks_of_rules_draw_values_that_a_user_may_ask_for() -> None:
    chosen = RuleTrial(5)
    graph = sample.trace(type("Config", (), {"vocab_size": 40}), F32)
    nodes = {node.name: node for node in graph.inputs}
    for parameter in PARAMETERS:
        node = nodes[parameter.name]
        array = InputValues(chosen).of(node)
        assert (array.dtype, array.shape) == (node.types[0].dtype.numpy, chosen.facts.sizes(node.types[0]))
        if parameter.tried:
            assert all(parameter.allows(parameter.kind(value)) for value in array.tolist())


@pytest.mark.parametrize("parameter", PARAMETERS, ids=NAMES)
def test_a_parameter_may_be_off_at_its_default_and_at_what_verify_tries(parameter: SamplingParameter) -> None:
    default = getattr(SamplingParams(), parameter.name)
    for value in (parameter.off, default, *parameter.tried):
        assert parameter.allows(value)
    assert isinstance(parameter.off, parameter.kind)


def test_a_user_may_choose_every_parameter_in_the_order_of_the_table() -> None:
    own = [field.name for field in fields(SamplingParams)]
    assert [name for name in own if name in NAMES] == NAMES
    assert SamplingParams(**GREEDY).greedy
    assert not SamplingParams().greedy


def test_the_op_takes_the_parameters_in_the_order_of_the_table() -> None:
    params = ops.sample.params
    start = params.index(NAMES[0])
    assert list(params[start : start + len(NAMES)]) == NAMES


def test_tokens_are_excluded_by_the_parameters_that_say_so() -> None:
    excluding = {parameter.name: parameter.off for parameter in EXCLUDING}
    weights = kept_weights(np.zeros(7, np.float32), **excluding)
    assert (weights > 0).all()


def test_commands_have_an_option_for_every_parameter() -> None:
    @click.command()
    @options.sampling
    def run() -> None: ...

    @click.command()
    @options.measured_sampling
    def bench() -> None: ...

    assert [(p.name, p.opts) for p in run.params] == [(p.name, [p.option]) for p in PARAMETERS]
    assert run.make_context("run", []).params == dict.fromkeys(NAMES)
    measured = {p.name: p.off for p in PARAMETERS if p.bench_help is not None}
    assert bench.make_context("bench", []).params == measured


def test_sampling_has_the_values_of_each_row_and_its_own_seed() -> None:
    rows = [(SamplingParams(temperature=0.5, top_k=3, seed=1), 2**32 - 1), (SamplingParams(temperature=0), 7)]
    sampling = Sampling.of(iter(rows))
    assert sampling.parameters["temperature"].tolist() == [0.5, 0.0]
    assert sampling.parameters["top_k"].tolist() == [3, 0]
    assert sampling.parameters["seed"].tolist() == [-1, 7]
    assert all(sampling.parameters[i.name].dtype == i.dtype.numpy for i in PARAMETER_INPUTS)
    assert not sampling.greedy
    assert not sampling.writes and not sampling.table_rows


def test_a_step_without_rows_samples_nothing() -> None:
    assert {array.shape for array in Sampling.of([]).parameters.values()} == {(0,)}


def test_sampling_with_everything_off_is_greedy() -> None:
    sampling = Sampling.off(3)
    assert sampling.greedy
    for item in PARAMETER_INPUTS:
        array = sampling.parameters[item.name]
        assert (array.dtype, array.shape) == (item.dtype.numpy, (3,))


@pytest.mark.parametrize(
    "change", [lambda held: {"heat": held["seed"]} | held, lambda held: {"seed": held["seed"]}]
)
def test_sampling_by_other_parameters_than_those_of_the_table_is_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    with pytest.raises(AssertionError, match="sampling by"):
        Sampling(change(dict(Sampling.off(1).parameters)))


def test_a_row_that_has_a_bias_or_forbidden_tokens_is_not_greedy() -> None:
    for item in TABLE_ROW_INPUTS:
        rows = {item.name: np.array([-1, 0], np.int32)}
        assert not replace(Sampling.off(2), table_rows=rows).greedy
    with pytest.raises(AssertionError, match="logit_bias"):
        replace(Sampling.off(2), table_rows={"logit_bias": np.zeros(2, np.int32)})


def test_only_an_input_with_a_default_can_be_filled() -> None:
    assert TABLE_ROW_INPUTS[0].filled({"rows": 2}).tolist() == [-1, -1]
    with pytest.raises(AssertionError, match="positions has no default"):
        next(item for item in INPUTS if item.name == "positions").filled({"tokens": 1})


def test_a_bundle_that_reads_an_unknown_input_is_refused_by_name() -> None:
    with pytest.raises(
        BundleError, match=r"decoder: no batch array 'alibi'; this runtime has \['allowed', 'all"
    ):
        check_input("alibi", F32, "decoder")
    with pytest.raises(BundleError, match="decoder: batch array 'positions' is i32, not f32"):
        check_input("positions", F32, "decoder")
    check_input("positions", I32, "decoder")


def test_numpy_refuses_a_bundle_that_reads_an_unknown_input(tiny: Callable[[str], Tiny]) -> None:
    made = tiny("seven_to_one")
    bundle, checkpoint = made.bundle(), Checkpoint.open(made.folder)
    variants = {
        name: msgspec.structs.replace(block, batch=[*block.batch, TensorSpec("alibi", "f32", ["tokens"])])
        for name, block in bundle.manifest.blocks["decoder"].items()
    }
    blocks = {**bundle.manifest.blocks, "decoder": variants}
    asking = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, blocks=blocks))
    with pytest.raises(BundleError, match="decoder: no batch array 'alibi'"):
        CpuExecutor.open(asking, checkpoint)


def test_shapes_follow_the_symbols() -> None:
    item = StepInput("x", I32, ("seqs + 1", 3))
    assert item.shape({"seqs": 4}) == (5, 3)


def test_words_are_listed_as_in_a_sentence() -> None:
    assert listed(["a", "b", "c"], "or") == "a, b or c"
    assert listed(["a", "b"], "and") == "a and b"
    assert listed(["a"], "and") == "a"
