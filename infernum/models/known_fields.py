"""Fields of a config.json that no family reads: those that must not be ignored, and those that may."""

from __future__ import annotations

from infernum.models.fields import Unsupported

_QUANTIZED = "the weights are quantized; give the folder of the original model"
_EXPERTS = "mixtures of experts are not implemented"
_WINDOW = "attention limited to a window is not implemented"

UNSUPPORTED: dict[str, Unsupported] = {
    "quantization_config": Unsupported(_QUANTIZED),
    "compression_config": Unsupported(_QUANTIZED),
    "quantization": Unsupported(_QUANTIZED),
    "is_encoder_decoder": Unsupported("only decoders can be compiled", (False,)),
    "add_cross_attention": Unsupported("cross-attention is not implemented", (False,)),
    "pruned_heads": Unsupported("pruned heads are not implemented", ({},)),
    "per_layer_config": Unsupported("all layers must have the same shape", ({},)),
    "text_config": Unsupported("only text models can be compiled"),
    "vision_config": Unsupported("only text models can be compiled"),
}
"""What no family may ask for."""

ARCHITECTURE: dict[str, Unsupported] = {
    "sliding_window": Unsupported(_WINDOW, switch="use_sliding_window"),
    "use_sliding_window": Unsupported(_WINDOW, (False,)),
    "attention_chunk_size": Unsupported(_WINDOW),
    "num_local_experts": Unsupported(_EXPERTS, (0, 1)),
    "num_experts": Unsupported(_EXPERTS, (0, 1)),
    "n_routed_experts": Unsupported(_EXPERTS, (0,)),
    "num_experts_per_tok": Unsupported(_EXPERTS, (0, 1)),
    "use_qk_norm": Unsupported("norms of queries and keys are not implemented", (False,)),
    "qk_norm": Unsupported("norms of queries and keys are not implemented", (False,)),
    "no_rope_layers": Unsupported("every layer must rotate its queries and keys", ([],)),
    "alibi": Unsupported("ALiBi is not implemented", (False,)),
    "attn_logit_softcapping": Unsupported("soft caps are not implemented"),
    "final_logit_softcapping": Unsupported("soft caps are not implemented"),
    "clip_qkv": Unsupported("clipped queries and keys are not implemented"),
    "attn_temperature_tuning": Unsupported("attention temperatures are not implemented", (False, 0)),
    "attention_multiplier": Unsupported("attention must be scaled by head_dim ** -0.5"),
    "query_pre_attn_scalar": Unsupported("attention must be scaled by head_dim ** -0.5"),
    "embedding_multiplier": Unsupported("multipliers are not implemented", (1,)),
    "residual_multiplier": Unsupported("multipliers are not implemented", (1,)),
    "logits_scaling": Unsupported("multipliers are not implemented", (1,)),
    "logit_scale": Unsupported("multipliers are not implemented", (1,)),
    "lm_head_bias": Unsupported("a bias of the head is not implemented", (False,)),
    "qkv_bias": Unsupported("use attention_bias", (False,)),
    "rotary_dim": Unsupported("every element of a head must be rotated"),
    "rotary_pct": Unsupported("every element of a head must be rotated", (1,)),
}
"""What some families have and a plain decoder has not; a family refuses those of them that it lacks."""

HARMLESS = frozenset(
    """
    model_type architectures transformers_version transformers.js_config _name_or_path name_or_path
    _commit_hash _attn_implementation _attn_implementation_autoset _attn_implementation_internal
    attn_implementation _flash_attn_2_enabled use_flash_attention use_flash_attn _from_model_config

    use_cache initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop
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
"""Fields that do not touch the mathematics: provenance, training, classification, and generation settings
(which are read from generation_config.json, as are the sampling parameters of `infernum.sampling_params`)."""
