"""Tiny models that can chat: each token has one successor, so that their answers are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from oracle.chat_cases import TEMPLATES
from oracle.checkpoints import write_checkpoint
from test_tokenizer import byte_level
from tokenizers import AddedToken

WIDTH = 320
CONTEXT = 1024
SPECIAL = ("<|im_start|>", "<|im_end|>")


def write_chat_model(
    folder: Path,
    answer: Sequence[str],
    *,
    endless: bool = False,
    special: Sequence[str] = (),
    template: str | None = "chatml",
    context: int = CONTEXT,
) -> Path:
    """A model whose answers are `answer`, characters that differ, and then the end of the turn; or `answer` again.

    What has several characters, in a list, is a token of its own, and one of `special` a special token.

    A token is one dimension of the hidden state, which nothing but the head reads: the head maps it to its successor.
    The answer follows a line break, with which the prompts of ChatML end. `<|im_end|>` is no end token of the model.
    """
    backend = byte_level(adds_bos=False)
    backend.add_special_tokens([AddedToken(text) for text in (*SPECIAL, *special)])
    backend.add_tokens([AddedToken(text) for text in answer if len(text) > 1 and text not in special])
    ids = [backend.encode(text).ids[0] for text in ("\n", *answer)]
    assert len(set(ids)) == len(ids), "a token has one successor"
    last = ids[1] if endless else backend.token_to_id("<|im_end|>")
    vocab = backend.get_vocab_size()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 5,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "eos_token_id": backend.token_to_id("<eos>"),
    }
    head = np.zeros((vocab, WIDTH), np.float32)
    for token, successor in zip(ids, [*ids[1:], last], strict=True):
        head[successor, token] = 1
    layer = {
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.k_proj": (WIDTH, WIDTH),
        "self_attn.v_proj": (WIDTH, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.gate_proj": (32, WIDTH),
        "mlp.up_proj": (32, WIDTH),
        "mlp.down_proj": (WIDTH, 32),
    }
    ones = np.ones(WIDTH, np.float32)
    weights = {
        "model.embed_tokens.weight": np.eye(vocab, WIDTH, dtype=np.float32),
        "lm_head.weight": head,
        "model.norm.weight": ones,
        "model.layers.0.input_layernorm.weight": ones,
        "model.layers.0.post_attention_layernorm.weight": ones,
        **{f"model.layers.0.{name}.weight": np.zeros(shape, np.float32) for name, shape in layer.items()},
    }
    write_checkpoint(folder, config, weights)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(TEMPLATES[template], encoding="utf-8")
    return folder
