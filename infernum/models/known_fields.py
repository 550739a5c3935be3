"""Known fields of config.json that families do not read: fields that must be rejected, and harmless fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

from infernum.models.fields import Unsupported, integer_problem

_QUANTIZED = "the weights are quantized; give the folder of the original model"
_EXPERTS = "mixtures of experts are not implemented"
_WINDOW = "models of this type attend to all tokens before a token"


def _window_is_off(value: object, fields: Mapping[str, object]) -> bool:
    """True when the window is switched off, or covers the whole context."""
    return fields.get("use_sliding_window") is False or _holds_context(value, fields)


def _no_window(value: object, fields: Mapping[str, object]) -> bool:
    """True when the switch is on, and the window is null or covers the whole context."""
    if "sliding_window" not in fields or value is not True:
        return False
    window = fields["sliding_window"]
    return window is None or _holds_context(window, fields)


def _holds_context(length: object, fields: Mapping[str, object]) -> bool:
    context = fields.get("max_position_embeddings")
    return _is_count(length) and _is_count(context) and length >= context


def _no_experts(value: object, fields: Mapping[str, object]) -> bool:
    """True when the model has at most one expert, so that the number of experts of a token has no effect."""
    counts = [
        fields[name] for name in ("num_local_experts", "num_experts", "n_routed_experts") if name in fields
    ]
    return bool(counts) and all(count in (None, 0, 1) for count in counts)


def _not_in_bits(value: object, fields: Mapping[str, object]) -> bool:
    """True when bitsandbytes, which quantizes to 4 or 8 bits while loading, is switched off."""
    del fields
    switches = ("load_in_4bit", "load_in_8bit")
    return isinstance(value, dict) and all(value.get(switch) is False for switch in switches)


def _is_head_dim(value: object, fields: Mapping[str, object]) -> bool:
    return value == _head_dim(fields)


def _scales_by_head_dim(value: object, fields: Mapping[str, object]) -> bool:
    head_dim = _head_dim(fields)
    return head_dim is not None and value == head_dim**-0.5


def _head_dim(fields: Mapping[str, object]) -> int | None:
    """The size of a head; None where its fields are missing or invalid, which is rejected elsewhere."""
    size, width, heads = (fields.get(name) for name in ("head_dim", "hidden_size", "num_attention_heads"))
    if size is not None:
        return size if _is_count(size) else None
    return width // heads if _is_count(width) and _is_count(heads) else None


def _is_count(value: object) -> TypeGuard[int]:
    return integer_problem(value) is None


UNSUPPORTED: dict[str, Unsupported] = {
    "quantization_config": Unsupported(_QUANTIZED, ({},), unless=_not_in_bits),
    "compression_config": Unsupported(_QUANTIZED),
    "quantization": Unsupported(_QUANTIZED),
    "is_encoder_decoder": Unsupported("only decoders can be compiled", (False,)),
    "add_cross_attention": Unsupported("cross-attention is not implemented", (False,)),
    "pruned_heads": Unsupported("pruned heads are not implemented", ({},)),
    "per_layer_config": Unsupported("all layers must have the same shape", ({},)),
    "text_config": Unsupported("only text models can be compiled", ({},)),
    "vision_config": Unsupported("only text models can be compiled", ({},)),
}
"""Fields that no family supports."""

ARCHITECTURE: dict[str, Unsupported] = {
    "sliding_window": Unsupported(_WINDOW, unless=_window_is_off),
    "use_sliding_window": Unsupported(_WINDOW, (False,), unless=_no_window),
    "attention_chunk_size": Unsupported(_WINDOW, unless=_holds_context),
    "num_local_experts": Unsupported(_EXPERTS, (0, 1)),
    "num_experts": Unsupported(_EXPERTS, (0, 1)),
    "n_routed_experts": Unsupported(_EXPERTS, (0,)),
    "num_experts_per_tok": Unsupported(_EXPERTS, (0, 1), unless=_no_experts),
    "use_qk_norm": Unsupported("norms of queries and keys are not implemented", (False,)),
    "qk_norm": Unsupported("norms of queries and keys are not implemented", (False,)),
    "no_rope_layers": Unsupported("every layer must rotate its queries and keys", ([],)),
    "alibi": Unsupported("ALiBi is not implemented", (False,)),
    "attn_logit_softcapping": Unsupported("soft caps are not implemented"),
    "final_logit_softcapping": Unsupported("soft caps are not implemented"),
    "clip_qkv": Unsupported("clipped queries and keys are not implemented"),
    "attn_temperature_tuning": Unsupported("attention temperatures are not implemented", (False, 0)),
    "attention_multiplier": Unsupported(
        "attention must be scaled by head_dim ** -0.5", unless=_scales_by_head_dim
    ),
    "query_pre_attn_scalar": Unsupported("attention must be scaled by head_dim ** -0.5", unless=_is_head_dim),
    "embedding_multiplier": Unsupported("multipliers are not implemented", (1,)),
    "residual_multiplier": Unsupported("multipliers are not implemented", (1,)),
    "logits_scaling": Unsupported("multipliers are not implemented", (1,)),
    "logit_scale": Unsupported("multipliers are not implemented", (1,)),
    "use_mrope": Unsupported("positions of several dimensions are not implemented", (False,)),
    "lm_head_bias": Unsupported("a bias of the head is not implemented", (False,)),
    "qkv_bias": Unsupported("use attention_bias", (False,)),
    "rotary_dim": Unsupported("every element of a head must be rotated", unless=_is_head_dim),
    "rotary_pct": Unsupported("every element of a head must be rotated", (1,)),
}
"""Fields of some families that a plain decoder lacks. Each family rejects those that its blocks lack."""


HARMLESS = frozenset(
    """
    model_type architectures transformers_version transformers.js_config _name_or_path name_or_path
    _commit_hash _attn_implementation _attn_implementation_autoset _attn_implementation_internal
    attn_implementation _flash_attn_2_enabled use_flash_attention use_flash_attn _from_model_config

    use_cache cache_implementation initializer_range attention_dropout hidden_dropout dropout mlp_dropout
    resid_pdrop embd_pdrop attn_pdrop hidden_dropout_prob attention_probs_dropout_prob output_router_logits
    router_aux_loss_coef
    gradient_checkpointing torchscript tf_legacy_loss use_bfloat16 return_dict output_attentions
    output_hidden_states is_decoder tie_encoder_decoder cross_attention_hidden_size chunk_size_feed_forward
    keys_to_ignore_at_inference

    id2label label2id num_labels problem_type finetuning_task task_specific_params tokenizer_class prefix
    pad_token_id bos_token_id eos_token_id sep_token_id unk_token_id cls_token_id decoder_start_token_id
    max_sequence_length model_max_length tokenizer_model_max_length tokenizer_padding_side

    max_length max_new_tokens min_length min_new_tokens do_sample early_stopping num_beams num_beam_groups
    diversity_penalty typical_p epsilon_cutoff eta_cutoff
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens

    is_llama_config unsloth_fixed unsloth_version unsloth_notice
    """.split()  # noqa: SIM905 (a list would take eighty lines)
)
"""Fields without effect on the mathematics: provenance, training, classification, and generation settings
(which are read from generation_config.json, as are the sampling parameters of `infernum.sampling_params`)."""
