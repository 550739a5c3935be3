"""The text model in the files of a model that also sees images: names of tensors, and fields without effect on text."""

from __future__ import annotations

TEXT_TENSORS = {
    "model.": ("language_model.model.", "model.language_model."),
    "lm_head.": ("language_model.lm_head.",),
}
"""For `FamilyConfig.tensor_beginnings`. Of the other beginnings, transformers 4 wrote the first, 5 the last."""

IMAGE_FIELDS = frozenset(
    {
        "vision_config",
        "boi_token_index",
        "eoi_token_index",
        "image_token_index",
        "image_token_id",
        "mm_tokens_per_image",
        "multimodal_projector_bias",
        "projector_hidden_act",
        "spatial_merge_size",
        "vision_feature_layer",
    }
)
"""For `FamilyConfig.ignored`."""
