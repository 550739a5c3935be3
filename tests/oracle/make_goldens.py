"""Compute `goldens/*.npz` with transformers on the CPU. Needs torch; run from the root of the repository:

python -m tests.oracle.make_goldens [NAME ...]

The name `chat` stands for goldens/chat.json, the conversations that transformers renders; it needs no torch.
"""

import io
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from .checkpoints import write_checkpoint
from .configs import CASES, OracleCase
from .golden import FOLDER, relative_error
from .live import transformers_logits
from .make_chat_goldens import make_chat_goldens
from .ropes import ROPES, compute_ropes
from .weights import digest, random_tokens, random_weights, rounded

CHAT, ROPE = "chat", "rope"
PAGE = 64
KEPT_LOGITS = 27_000


def kept_positions(tokens: int, vocab: int) -> np.ndarray:
    """The positions whose logits are kept: all, where that is at most KEPT_LOGITS numbers.

    Else the first, the last, those beside a page boundary, and as many evenly spread others as there is
    room for.
    """
    room = KEPT_LOGITS // vocab
    if room >= tokens:
        return np.arange(tokens, dtype=np.int32)
    edges = {p + d for p in range(PAGE, tokens, PAGE) for d in (-1, 0)} | {0, tokens - 1}
    others = [p for p in range(tokens) if p not in edges]
    spread = np.linspace(0, len(others) - 1, max(0, room - len(edges))).round().astype(int)
    return np.array(sorted(edges | {others[i] for i in spread}), dtype=np.int32)


def greedy(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best token and its lead over the second best, per position."""
    best_two = np.sort(logits, axis=-1)[:, -2:]
    return logits.argmax(axis=-1).astype(np.int32), (best_two[:, 1] - best_two[:, 0]).astype(np.float32)


def compute(case: OracleCase) -> dict[str, np.ndarray]:
    """Run transformers thrice: float32 on the stored weights, float32 and bfloat16 on bf16-rounded ones."""
    import torch
    import transformers

    weights = random_weights(case.config)
    token_ids = random_tokens(case.vocab, case.tokens)
    positions = kept_positions(case.tokens, case.vocab)
    with tempfile.TemporaryDirectory() as temporary:
        stored = write_checkpoint(
            Path(temporary, "stored"), case.config, weights, dtype=case.dtype, shards=case.shards
        )
        in_bf16 = write_checkpoint(
            Path(temporary, "bf16"), case.config, rounded(weights, case.dtype), dtype="bfloat16"
        )
        logits = transformers_logits(stored, token_ids, "float32")
        logits_bf16_weights = transformers_logits(in_bf16, token_ids, "float32")
        hf_bf16 = transformers_logits(in_bf16, token_ids, "bfloat16")
    argmax, margin = greedy(logits)
    argmax_bf16_weights, margin_bf16_weights = greedy(logits_bf16_weights)
    return {
        "token_ids": token_ids,
        "positions": positions,
        "logits": logits[positions],
        "argmax": argmax,
        "margin": margin,
        "logits_bf16_weights": logits_bf16_weights[positions],
        "argmax_bf16_weights": argmax_bf16_weights,
        "margin_bf16_weights": margin_bf16_weights,
        "hf_bf16_error": np.float64(relative_error(hf_bf16[positions], logits_bf16_weights[positions])),
        "weights_sha256": np.array(digest(weights)),
        "versions": np.array(f"transformers {transformers.__version__}, torch {torch.__version__}"),
    }


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """As numpy.savez_compressed, but with a fixed date, so that the same answers are the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, np.asanyarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data.getvalue(), compresslevel=9)


def main(names: list[str]) -> None:
    unknown = set(names) - {case.name for case in CASES} - {CHAT, ROPE}
    assert not unknown, f"no such case: {', '.join(sorted(unknown))}"
    FOLDER.mkdir(exist_ok=True)
    if not names or CHAT in names:
        make_chat_goldens()
    if not names or ROPE in names:
        write_npz(ROPES, compute_ropes())
        print(f"{ROPE:18} {ROPES.stat().st_size / 1024:4.0f} KiB", flush=True)
    for case in CASES:
        if names and case.name not in names:
            continue
        arrays = compute(case)
        path = FOLDER / f"{case.name}.npz"
        write_npz(path, arrays)
        rounding = relative_error(arrays["logits_bf16_weights"], arrays["logits"])
        print(
            f"{case.name:18} {case.tokens} tokens, {len(arrays['positions']):3} kept, "
            f"{path.stat().st_size / 1024:4.0f} KiB, logits' deviation {arrays['logits'].std():.2f}, "
            f"median margin {np.median(arrays['margin']):.2f}, bf16 weights {rounding:.4f}, "
            f"bf16 run {float(arrays['hf_bf16_error']):.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
