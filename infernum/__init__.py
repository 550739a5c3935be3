"""Infernum: an ahead-of-time compiler for language models.

from infernum import LLM, SamplingParams

with LLM("dante") as llm:
    print(llm.generate("Midway upon the journey of our life", SamplingParams(max_tokens=40))[0].text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infernum.grammar import Grammar
    from infernum.llm import LLM
    from infernum.sampling_params import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "Grammar", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that `import infernum` costs nothing."""
    if name == "LLM":
        from infernum.llm import LLM

        return LLM
    if name == "Grammar":
        from infernum.grammar import Grammar

        return Grammar
    if name == "SamplingParams":
        from infernum.sampling_params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'infernum' has no attribute {name!r}")
