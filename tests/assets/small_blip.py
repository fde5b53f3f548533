"""A BLIP of one layer with random weights, in a folder as transformers saves it."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

_MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")
_WORDS = ("a", "photo", "of", "cat", "dog", "red", "sitting", "on", "grass")


def make_small_blip(folder: Path) -> Path:
    """It knows nine words and never comes to an end by itself: each caption is as long as it may be."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(_MARKS + _WORDS) + "\n", encoding="utf-8")
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"), additional_special_tokens=["[DEC]", "[ENC]"])
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.BlipProcessor(images, tokenizer).save_pretrained(str(folder))
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**size, "image_size": 32, "patch_size": 16}
    start, end = _MARKS.index("[DEC]"), _MARKS.index("[SEP]")
    marks = {"bos_token_id": start, "eos_token_id": end, "sep_token_id": end, "pad_token_id": 0}
    words = {"vocab_size": len(_MARKS + _WORDS), "max_position_embeddings": 128, "encoder_hidden_size": 16}
    torch.manual_seed(0)
    config = transformers.BlipConfig(text_config={**size, **marks, **words}, vision_config=vision)
    model = transformers.BlipForConditionalGeneration(config)
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[: len(_MARKS)] = -100
    model.save_pretrained(str(folder), safe_serialization=True)
    return folder
