"""Mistakes for kernels of the demo model's bundle (bfloat16, fused), which `verify` must find on a GPU.

Each is a piece of emitted CUDA and what takes its place. None reads or writes outside the memory that a trial gives
its kernel, so that a wrong kernel does not take the GPU's context with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from infernum.bundle import Bundle, write_bundle
from infernum.codegen.nvrtc import compile_all


@dataclass(frozen=True)
class Breakage:
    """`old` in the source of a block variant becomes `new`; of its kernels, only `kernel` is then wrong."""

    name: str
    block: str
    variant: str
    kernel: str
    old: str
    new: str

    @property
    def file(self) -> str:
        return f"{self.block}.{self.variant}.cu"

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


BREAKAGES = [
    Breakage(
        "wrong index",
        "head",
        "t8",
        "select_rows",
        "size_t row = rows[blockIdx.x];",
        "size_t row = blockIdx.x;",
    ),
    Breakage(
        # With one position in a split, three of four warps have nothing to wait for and merge what is not there yet.
        "missing sync",
        "decoder",
        "t64",
        "attention_units",
        "warp_stats[warp]);\n    __syncthreads();\n",
        "warp_stats[warp]);\n",
    ),
    Breakage(
        # As above: a token alone leaves all warps but one with nothing to wait for.
        "missing sync in the fused kernel",
        "decoder",
        "t8",
        "attend_cluster",
        "warp_stats[warp]);\n    __syncthreads();\n",
        "warp_stats[warp]);\n",
    ),
    Breakage(
        "wrong scale",
        "decoder",
        "prefill",
        "attention_prefill_wgmma",
        "FACTOR = CAP == 0.0f ? SCALE : 1.0f;",
        "FACTOR = CAP == 0.0f ? 2.0f * SCALE : 1.0f;",
    ),
    Breakage(
        "last token of a prompt taken for a decode",
        "decoder",
        "prefill",
        "attention_prefill_wgmma",
        "tile.count <= 0 || tile.is_single",
        "tile.count <= 1",
    ),
    Breakage(
        "unwritten tail",
        "decoder",
        "decode",
        "silu_mul",
        "if (token >= tokens) return;",
        "if (token + 1 >= tokens) return;",
    ),
    Breakage(
        "swapped halves",
        "decoder",
        "t8",
        "attend_cluster",
        "rotation.turn(first[t], second[t]);",
        "rotation.turn(second[t], first[t]);",
    ),
    Breakage(
        "page written off by one",
        "decoder",
        "prefill",
        "rope_append",
        "max_pages + position / PAGE];",
        "max_pages + (position + 1) / PAGE];",
    ),
    Breakage(
        "page read off by one",
        "decoder",
        "t1",
        "attend_cluster",
        "max(pages[unit * UNIT / PAGE], 0)",
        "max(pages[(unit + 1) * UNIT / PAGE], 0)",
    ),
    Breakage(
        "parts of a cluster upon each other",
        "decoder",
        "t1",
        "attend_cluster",
        "&sums[(rank - owner) * slice + e]",
        "&sums[e - owner * slice]",
    ),
    Breakage(
        "splits that all weigh the same",
        "decoder",
        "t1",
        "attend_cluster",
        "const float others = exp2_approximate(other.log_total - highest);",
        "const float others = 1.0f;",
    ),
    Breakage("one token too few", "sample", "any", "sample", "more_likely < k", "more_likely + 1 < k"),
    Breakage(
        "top-p a level short",
        "sample",
        "any",
        "sample",
        "level_of(logit_of(key), largest) <= last",
        "level_of(logit_of(key), largest) < last",
    ),
    Breakage(
        "chunks weighed without min-p",
        "sample",
        "any",
        "sample_weights",
        "} else if (weight >= lightest) {",
        "} else {",
    ),
    Breakage(
        "missing last split",
        "decoder",
        "t64",
        "attention_combine",
        "const int splits = (attended + length - 1) / length;",
        "const int splits = attended / length;",
    ),
    Breakage(
        "gate and up swapped",
        "decoder",
        "t1",
        "gemv_mma_gate_up_proj",
        "part_0 = round_to<bf16_t>(whole_0);\n        const float part_1 = round_to<bf16_t>(whole_1);",
        "part_0 = round_to<bf16_t>(whole_1);\n        const float part_1 = round_to<bf16_t>(whole_0);",
    ),
    Breakage(
        "gate and up swapped for several tokens",
        "decoder",
        "t8",
        "gemv_mma_gate_up_proj",
        "part_0 = round_to<bf16_t>(whole_0);\n        const float part_1 = round_to<bf16_t>(whole_1);",
        "part_0 = round_to<bf16_t>(whole_1);\n        const float part_1 = round_to<bf16_t>(whole_0);",
    ),
    Breakage(
        "gate and up swapped for tens of tokens",
        "decoder",
        "t64",
        "product_wgmma_gate_up_proj",
        "part_0 = round_to<bf16_t>(whole_0[e]);\n            const float part_1 = round_to<bf16_t>(whole_1[e]);",
        "part_0 = round_to<bf16_t>(whole_1[e]);\n            const float part_1 = round_to<bf16_t>(whole_0[e]);",
    ),
    Breakage(
        "residual of tens of tokens not added",
        "decoder",
        "t64",
        "product_wgmma_down_proj",
        "add_2 = add_1_value + part_0;",
        "add_2 = part_0;",
    ),
    Breakage(
        # Shows where a row is all zeros or its squares vanish: 1 / sqrt(0) is infinite.
        "eps dropped",
        "head",
        "t64",
        "rms_norm_model_norm",
        "sqrtf(sum / width + eps);",
        "sqrtf(sum / width);",
    ),
    Breakage("NaN never wins", "greedy", "any", "argmax", "logit <= best.logit", "!(logit > best.logit)"),
    Breakage("infinity is drawn", "greedy", "any", "argmax_finish", "isfinite(best.logit)", "true"),
    Breakage("NaN is the least likely", "sample", "any", "sample_keys", "isnan(x) ? ~0u", "isnan(x) ? 1u"),
    Breakage("infinity is sampled", "sample", "any", "sample", "!isfinite(logit_of(best_key))", "false"),
    Breakage("no token becomes an input", "greedy", "any", "advance", "] = max(0, ", "] = ("),
    Breakage(
        "no token counts as one",
        "sample",
        "any",
        "count_tokens",
        "const int token = next_tokens[row],",
        "const int token = max(0, next_tokens[row]),",
    ),
    Breakage(
        "of equal logits the last is ranked first",
        "logprobs",
        "any",
        "logprobs",
        "<< 32 | ~unsigned(token)",
        "<< 32 | unsigned(token)",
    ),
    Breakage(
        "the scored token is not looked at",
        "logprobs",
        "any",
        "logprobs",
        "asked < 0 ?",
        "true ?",
    ),
    Breakage(
        "the largest logit is not subtracted",
        "logprobs",
        "any",
        "logprobs",
        "double(logit) - double(largest)",
        "double(logit)",
    ),
    Breakage(
        "chunks have one token each",
        "logprobs",
        "any",
        "logprobs",
        "if (threadIdx.x == chunk) mine = next;",
        "if (threadIdx.x == chunk) mine = 0;",
    ),
    Breakage("half is counted", "sample", "any", "count_tokens", "] += 2;", "] += 1;"),
    Breakage(
        "the prompt is penalised like the output",
        "sample",
        "any",
        "sample_keys",
        "if (times > 0) x = __fsub_rn",
        "if (count > 0) x = __fsub_rn",
    ),
    Breakage(
        "the output is not penalised as seen",
        "sample",
        "any",
        "sample_keys",
        "if (count > 0) x = x > 0.0f",
        "if (count & 1) x = x > 0.0f",
    ),
    Breakage("counts are doubled", "sample", "any", "sample_keys", "times = count >> 1;", "times = count;"),
    Breakage("bias left out", "sample", "any", "sample_keys", "if (biased >= 0) x", "if (false) x"),
    Breakage(
        "forbidden tokens are sampled", "sample", "any", "sample_keys", "if (masked >= 0 &&", "if (false &&"
    ),
    Breakage("last of equal logits", "greedy", "any", "argmax", "b.token < a.token", "b.token > a.token"),
    Breakage(
        "sum without a lane",
        "head",
        "t64",
        "rms_norm_model_norm",
        "for (int lane = 16; lane > 0; lane >>= 1) x += __shfl",
        "for (int lane = 16; lane > 1; lane >>= 1) x += __shfl",
    ),
    Breakage(
        "residual not added",
        "decoder",
        "t8",
        "gemv_mma_down_proj",
        "add_2 = add_1_value + part_0;",
        "add_2 = part_0;",
    ),
]


def broken_source(bundle: Bundle, breakage: Breakage) -> str:
    """The source of a block variant with the mistake in it."""
    text = bundle.read(breakage.file).decode()
    assert text.count(breakage.old) == 1, (
        f"{breakage.name}: found {text.count(breakage.old)} times in {breakage.file}"
    )
    return text.replace(breakage.old, breakage.new)


def broken_bundles(bundle: Bundle, breakages: Iterable[Breakage], folder: Path) -> dict[str, Bundle]:
    """A bundle for each mistake, by its name; everything but one file and its cubin is as in `bundle`."""
    files = {name: bundle.read(name) for name in bundle.checksums if name != "manifest.json"}
    chosen = {f"{breakage}.cu": breakage for breakage in breakages}
    sources = {name: broken_source(bundle, breakage) for name, breakage in chosen.items()}
    cubins = compile_all(sources.items(), bundle.arch, cache=None)
    broken: dict[str, Bundle] = {}
    for name, breakage in chosen.items():
        cubin_name = bundle.manifest.blocks[breakage.block][breakage.variant].cubin
        changed = {breakage.file: sources[name].encode(), cubin_name: cubins[name].data}
        broken[breakage.name] = write_bundle(folder / str(breakage), bundle.manifest, files | changed)
    return broken
