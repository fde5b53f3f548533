"""Image encoders of transformers with random weights, saved as a person would have them on the disk."""

from __future__ import annotations

from pathlib import Path


def save_clip(folder: Path) -> Path:
    """CLIP for 32 px with 8 projected numbers and CLIP's own vocabulary. Returns its folder."""
    import torch
    import transformers

    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**layers, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    vision = {**layers, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder
