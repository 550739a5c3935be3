"""Which kernels a Llama becomes, in every variant, dtype, width and choice of biases: `golden/kernels.txt`.

The table is what a change of rules or kernels must leave as it is, or change on purpose (`pytest --update-golden`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_shapes import DTYPES, SHAPES

from infernum.codegen.steps import KernelStep
from infernum.compiler import Options, Sources, emit_sources
from infernum.models.config import understand
from infernum.models.fields import Fields
from infernum.models.presets import ModelSource, resolve

GOLDEN = Path(__file__).parent / "golden" / "kernels.txt"


def source(config: dict[str, Any] | str, name: str) -> ModelSource:
    return resolve(config) if isinstance(config, str) else understand(Fields(config, name))


def table() -> Iterator[str]:
    """One line for the layer and the head in each variant; dtypes that give the same kernels share their lines."""
    for name, config in SHAPES.items():
        for fuse in (True, False):
            dtypes: dict[tuple[str, ...], list[str]] = {}
            for dtype in DTYPES:
                emitted = emit_sources(source(config, name), Options(dtype=dtype, fuse=fuse))
                dtypes.setdefault(tuple(lines(emitted)), []).append(dtype)
            for rows, alike in dtypes.items():
                yield f"{name}, {', '.join(alike)}{'' if fuse else ', not fused'}"
                yield from rows
                yield ""


def lines(sources: Sources) -> Iterator[str]:
    for block in (b for b in sources.blocks if b.block in ("decoder", "head")):
        names = [step.name for step in block.plan.steps if isinstance(step, KernelStep)]
        products = len(block.plan.steps) - len(names)
        library = f" and {products} of the library" if products else ""
        yield f"  {block.stem}: {len(names)} kernels{library}: {', '.join(s.name for s in block.plan.steps)}"


def test_llamas_become_the_kernels_of_the_table(update_golden: bool) -> None:
    text = "\n".join(table())
    if update_golden:
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), "review the difference, then run `pytest --update-golden`"
