"""The memory plan of a block over its steps: which bytes of the arena each buffer occupies, and when."""

from __future__ import annotations

from typing import Any

from infernum.dims import size
from infernum.dtypes import DTYPES
from infernum.manifest import BlockVariant, TensorSpec, VariantSpec, named_tensors


def nbytes(spec: TensorSpec, variant: VariantSpec) -> int:
    """Bytes of a tensor at the largest step of a variant, for which the arena is planned."""
    symbols = {"tokens": variant.max_tokens, "seqs": variant.max_tokens, "rows": variant.max_rows}
    return DTYPES[spec.dtype].bytes * size(tuple(spec.shape), symbols)


def buffer_data(block: BlockVariant, variant: VariantSpec) -> list[dict[str, Any]]:
    """Every buffer with offset, bytes, and the steps that name it; it lives from the first to the last of them."""
    used = [named_tensors(step) for step in block.steps]
    return [
        {
            "name": name,
            "type": buffer.spec.type_text,
            "offset": buffer.offset,
            "bytes": nbytes(buffer.spec, variant),
            "steps": [i for i, names in enumerate(used) if name in names],
        }
        for name, buffer in block.buffers.items()
    ]
