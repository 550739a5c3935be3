"""Write a Hugging Face checkpoint folder without torch: config.json and one or several safetensors files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from .weights import DTYPES


def write_checkpoint(
    folder: Path,
    config: dict[str, Any],
    weights: dict[str, np.ndarray],
    *,
    dtype: str = "float32",
    shards: int = 1,
) -> Path:
    """Write `config` and `weights`, the latter rounded to `dtype` ("float32", "float16" or "bfloat16").

    One shard gives `model.safetensors`; several give `model-00001-of-0000N.safetensors` and so on, with
    about as many tensors each, and `model.safetensors.index.json`. Creates the folder and returns it.
    """
    assert 1 <= shards <= len(weights), f"cannot spread {len(weights)} tensors over {shards} files"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    stored = {name: np.ascontiguousarray(tensor.astype(DTYPES[dtype])) for name, tensor in weights.items()}
    if shards == 1:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    weight_map: dict[str, str] = {}
    for part, names in enumerate(np.array_split(list(stored), shards), start=1):
        file = f"model-{part:05d}-of-{shards:05d}.safetensors"
        save_file({name: stored[name] for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names.tolist(), file)
    total = sum(tensor.nbytes for tensor in stored.values())
    index_json = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(index_json, indent=2) + "\n", encoding="utf-8"
    )
    return folder
