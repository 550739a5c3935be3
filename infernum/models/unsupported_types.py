"""Known model types that no family supports, by what their blocks would need."""

from __future__ import annotations

_TYPES = {
    "experts": """
        dbrx ernie4_5_moe granitemoe hunyuan_v1_moe jetmoe minimax_m2 mixtral olmoe phimoe qwen2_moe qwen3_moe
        qwen3_vl_moe""",
    "experts, and rotation of a part of a head": "glm4_moe",
    "experts, and attention in chunks": "llama4 llama4_text",
    "experts in MXFP4, and sinks of attention": "gpt_oss",
    "experts, and keys and values of a latent": """
        deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 glm4_moe_lite glm_moe_dsa kimi_k25 longcat_flash mistral4""",
    "a state beside the KV cache": """
        bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 mamba mamba2 minimax nemotron_h
        olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma rwkv xlstm zamba
        zamba2""",
    "norms behind the layers": "exaone4 olmo2 olmo3",
    "norms behind the layers, and rotation of neighbours": "glm4",
    "rotation of neighbours": "ernie4_5 glm helium",
    "norms with a mean, and attention beside the MLP": "cohere cohere2 falcon gpt_neox gptj phi",
    "norms with a mean": "bloom gpt2 gpt_bigcode mpt nemotron olmo opt stablelm starcoder2",
    "norms of heads behind the rotation": "hunyuan_v1_dense",
    "layers that share keys and values": "gemma3n gemma3n_text gemma4 gemma4_text gemma4_unified gemma4_unified_text",
    "images": "glm4v llava mllama phi4_multimodal qwen2_5_vl qwen2_vl qwen3_vl",
}

NEEDS = {model_type: needs for needs, types in _TYPES.items() for model_type in types.split()}
"""What a model type needs, as the end of a sentence."""
