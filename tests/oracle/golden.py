"""The committed answers of transformers, one .npz per case of `configs.CASES`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent / "goldens"


@dataclass(frozen=True)
class Answer:
    """What one float32 run gave. `argmax` and `margin` are there for every position, logits for some."""

    logits: np.ndarray  # [positions, vocab] float32
    argmax: np.ndarray  # [tokens] int32: the greedy next token
    margin: np.ndarray  # [tokens] float32: the largest logit minus the second largest


@dataclass(frozen=True)
class Golden:
    """All that is committed about one case."""

    token_ids: np.ndarray  # [tokens] int32
    positions: np.ndarray  # [positions] int32, ascending: the rows whose logits are kept
    stored: Answer  # on the weights as the checkpoint stores them
    bf16_weights: Answer  # on the stored weights rounded to bfloat16, still computed in float32
    hf_bf16_error: float  # of transformers' own bfloat16 CPU run against bf16_weights.logits, same positions
    weights_sha256: str  # `weights.digest(random_weights(config))`
    versions: str  # of transformers and torch


def relative_error(out: np.ndarray, reference: np.ndarray) -> float:
    """The one metric: the norm of the difference over the norm of the reference, in float64."""
    out, reference = out.astype(np.float64), reference.astype(np.float64)
    return float(np.linalg.norm(out - reference) / np.linalg.norm(reference))


def load_golden(name: str) -> Golden:
    """Read `goldens/NAME.npz`."""
    with np.load(FOLDER / f"{name}.npz") as kept:
        return Golden(
            token_ids=kept["token_ids"],
            positions=kept["positions"],
            stored=Answer(kept["logits"], kept["argmax"], kept["margin"]),
            bf16_weights=Answer(
                kept["logits_bf16_weights"], kept["argmax_bf16_weights"], kept["margin_bf16_weights"]
            ),
            hf_bf16_error=float(kept["hf_bf16_error"]),
            weights_sha256=str(kept["weights_sha256"]),
            versions=str(kept["versions"]),
        )
