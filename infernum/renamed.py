"""What plugins were written against in earlier versions, and what takes its place: for the errors that they meet."""

from __future__ import annotations

import re

RULES = {
    "merge_qkv": "merge_products",
    "merge_qkv_bias": "merge_products",
    "merge_gate_up": "merge_products",
    "merge_gate_up_bias": "merge_products",
    "bias_into_linear": "into_epilogue",
    "swiglu_into_gemv": "into_epilogue",
    "biased_swiglu_into_gemv": "into_epilogue",
    "residual_into_gemv": "into_epilogue",
    "norm_into_gemv": "into_prologue",
    "add_rms_norm": "into_norm",
    "residual_into_gemm": "into_library",
}
"""Rules by their earlier names, and the rule that does the same now."""

KEYWORDS = {
    ("Template", "block"): "threads",
    ("Template", "slots"): "row_ops",
    ("Template", "prologue"): "pointwise_operand",
    ("Template", "ahead"): "reads_before_wait",
    ("Template", "then"): "next_kernel",
    ("Template", "takes"): "arguments",
    ("op", "touched"): "moved_bytes",
}
"""Keyword arguments by what they are given to and their earlier names, and their present names."""

_ADVICE = {
    r"cannot import name 'absorb' from 'infernum\.ir\.rewrite'": (
        "`into_epilogue` and `into_prologue` absorb every op that a kernel can compute, so that an op needs no rule; "
        "a row op declares `prologue=` (infernum/ops/norm.py)"
    ),
    r"No module named 'infernum\.fusion\.(linear|mlp|norms)'": (
        "the rules about products and norms are in infernum.fusion.products and infernum.fusion.hosts; "
        "what a kernel can absorb, its `plan` says"
    ),
    r"Template.*unexpected keyword argument '(when|constants|choices|feasible)'": (
        "`layouts=` takes the place of when, constants, choices and feasible: a function of (call, target) that "
        "yields Layout(constants, parameters), the default first, or Refusal(reason)"
    ),
    r"Library.*unexpected keyword argument '(when|epilogue)'": (
        "`Library.plan` says what the library can compute, and it is the last of an op's kernels"
    ),
    r"cannot import name '(chosen|always|no_constants|no_choices|Condition|Constants|Choices)'"
    r" from 'infernum\.ir\.kernel'": (
        "a kernel has `layouts=`, which yields Layout(constants, parameters) or Refusal(reason); "
        "`alternatives(THREADS=(256, 128))` gives the combinations of its parameters"
    ),
    r"No module named 'infernum\.models\.llama_config'": "import from infernum.models.llama",
    r"cannot import name 'Part' from 'infernum\.ir\.graph'": "it is `infernum.recipes.read(name, *shape)`",
    r"No module named 'infernum\.runtime\.weight_plan'": "import from infernum.weights.plan",
    r"No module named 'infernum\.runtime\.batch'": "import from infernum.step",
    r"No module named 'infernum\.engine\.sampling_params'": "import from infernum.sampling_params",
    r"'norm' is undefined": "a norm on the operand x is `x_norm`, which has `struct`, `arguments` and `gain`",
    r"'float_literal' is undefined": "it is called `literal`",
    **{
        rf"\b{function}(\.__init__)?\(\) got an unexpected keyword argument '{before}'": f"it is called `{now}=`"
        for (function, before), now in KEYWORDS.items()
    },
}
"""Patterns of messages that an earlier spelling leads to, and the present spelling."""


def advice(message: str) -> str:
    """The present spelling, to be put behind an error's message; "" where no earlier one is the cause."""
    return next((f"; {now}" for pattern, now in _ADVICE.items() if re.search(pattern, message)), "")
