"""Deterministic bundles: two classes of steps whose kernels sum in the same orders, and what has no such kernels."""

from dataclasses import replace

import pytest

from infernum.codegen.steps import KernelStep
from infernum.compiler import Options, Sources, emit_sources
from infernum.errors import CompileError
from infernum.models.presets import resolve


@pytest.fixture(scope="module")
def sources() -> Sources:
    return emit_sources(resolve("llama"), Options(deterministic=True))


def kernels(sources: Sources, variant: str) -> list[KernelStep]:
    blocks = [block for block in sources.blocks if block.target.variant == variant]
    steps = [step for block in blocks for step in block.plan.steps]
    assert all(isinstance(step, KernelStep) for step in steps), (
        "the library's sums depend on the number of tokens"
    )
    return steps


def test_steps_that_decode_and_all_others_are_the_only_classes(sources: Sources) -> None:
    assert [(v.name, v.min_tokens, v.decodes) for v in sources.variants] == [
        ("decode", 1, True),
        ("prefill", 1, False),
    ]


@pytest.mark.parametrize("template", ["product_wgmma", "norm"])
def test_both_classes_share_out_a_row_in_the_same_way(sources: Sources, template: str) -> None:
    def shares(variant: str) -> list[tuple[object, ...]]:
        names = ("WIDTH", "SPLIT") if template == "product_wgmma" else ("WIDTH", "THREADS")
        found = [step for step in kernels(sources, variant) if step.template.name == template]
        return [(step.name, *(step.context[name] for name in names)) for step in found]

    assert len(shares("decode")) >= 3 and shares("decode") == shares("prefill")


def test_a_single_token_has_the_same_splits_of_its_context_alone_and_beside_prompts(sources: Sources) -> None:
    def splits(variant: str) -> list[tuple[object, ...]]:
        names = ("SPLITS", "SPLIT_MIN", "SPLIT_COUNT", "WARPS", "Z")
        units = [step for step in kernels(sources, variant) if step.template.name == "attention_units"]
        return [tuple(step.context[name] for name in names) for step in units]

    assert len(splits("decode")) == 1 and splits("decode") == splits("prefill")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(arch="sm_80", deterministic=True), "not for sm_80 in bfloat16"),
        (Options(dtype="float32", deterministic=True), "not for sm_90a in float32"),
        (
            Options(max_batch_tokens=64, deterministic=True),
            "the largest step has 64 tokens; it must have 128",
        ),
    ],
    ids=["architecture", "type", "step"],
)
def test_what_has_no_deterministic_kernels_is_refused(options: Options, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        emit_sources(resolve("llama"), options)


def test_a_head_size_without_a_kernel_for_prompts_and_decodes_together_is_refused() -> None:
    llama = resolve("llama")
    with pytest.raises(CompileError, match="decodes alone and beside prompts would have other sums"):
        emit_sources(replace(llama, config=replace(llama.config, head_dim=80)), Options(deterministic=True))
