"""Ask transformers itself, where torch is installed."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def transformers_logits(
    folder: Path, token_ids: Sequence[int] | np.ndarray, dtype: str = "float32"
) -> np.ndarray:
    """Logits of the checkpoint in `folder` for one sequence, [tokens, vocab] float32, computed on the CPU.

    `dtype`, "float32" or "bfloat16", is that of weights and activations both. Fails when the checkpoint lacks a
    tensor that the model wants, or has one that it does not.
    """
    import torch
    import transformers

    (architecture,) = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    model, report = getattr(transformers, architecture).from_pretrained(
        folder, dtype=getattr(torch, dtype), output_loading_info=True
    )
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    assert not wrong, f"{folder} does not fit its config: {wrong}"
    ids = torch.tensor(np.asarray(token_ids, dtype=np.int64))[None]
    with torch.inference_mode():
        logits = model.eval()(input_ids=ids, use_cache=False).logits
    return logits[0].float().numpy()
