"""Image-to-text models of one layer with random weights, in folders as transformers saves them.

They know nine words and never come to an end by themselves: each caption is as long as it may be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as tf

_MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")
_WORDS = ("a", "photo", "of", "cat", "dog", "red", "sitting", "on", "grass")
_START, _END = _MARKS.index("[DEC]"), _MARKS.index("[SEP]")
_SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_VISION = {**_SIZE, "intermediate_size": 16, "image_size": 32, "patch_size": 16}
_TEXT = {
    **_SIZE,
    "vocab_size": len(_MARKS + _WORDS) + 1,  # and the place for a picture, which BLIP-2 adds
    "max_position_embeddings": 128,
    "bos_token_id": _START,
    "eos_token_id": _END,
    "pad_token_id": 0,
}
_SIDES = {"height": 32, "width": 32}


def make_blip(folder: Path) -> Path:
    text = {**_TEXT, "intermediate_size": 16, "sep_token_id": _END, "encoder_hidden_size": 16}
    model = tf.BlipForConditionalGeneration(tf.BlipConfig(text_config=text, vision_config=_VISION))
    processor = tf.BlipProcessor(tf.BlipImageProcessor(size=_SIDES), _tokenizer(folder))
    return _save(folder, model, model.text_decoder.cls.predictions.decoder, processor)


def make_git(folder: Path) -> Path:
    model = tf.GitForCausalLM(tf.GitConfig(vision_config=_VISION, intermediate_size=16, **_TEXT))
    images = tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=_SIDES)
    return _save(folder, model, model.output, tf.GitProcessor(images, _tokenizer(folder)))


def make_vision_encoder_decoder(folder: Path) -> Path:
    """ViT and BERT, as ViT-GPT2 is made; such models have no processor of their own."""
    encoder = tf.ViTConfig(**_VISION)
    decoder = tf.BertConfig(**_TEXT, intermediate_size=16, is_decoder=True, add_cross_attention=True)
    config = tf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = tf.VisionEncoderDecoderModel(config=config)
    for place in (model.config, model.generation_config):
        place.decoder_start_token_id, place.pad_token_id, place.eos_token_id = _START, 0, _END
    images = tf.ViTImageProcessor(size=_SIDES)
    return _save(folder, model, model.decoder.cls.predictions.decoder, images, _tokenizer(folder))


def make_blip_2(folder: Path) -> Path:
    is_old = not hasattr(tf.Blip2Config(), "image_token_index")  # transformers before 4.45 leave the places out
    text = tf.OPTConfig(**_TEXT, ffn_dim=16, word_embed_proj_dim=16)
    bridge = tf.Blip2QFormerConfig(**_SIZE, vocab_size=20, intermediate_size=16, encoder_hidden_size=16)
    places = {} if is_old else {"image_token_index": len(_MARKS + _WORDS)}
    config = tf.Blip2Config(
        vision_config=tf.Blip2VisionConfig(**_VISION).to_dict(),
        qformer_config=bridge.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=4,
        **places,
    )
    model = tf.Blip2ForConditionalGeneration(config)
    options = {} if is_old else {"num_query_tokens": 4}
    processor = tf.Blip2Processor(tf.BlipImageProcessor(size=_SIDES), _tokenizer(folder), **options)
    return _save(folder, model, model.language_model.lm_head, processor)


def _tokenizer(folder: Path) -> Any:
    folder.mkdir(parents=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(_MARKS + _WORDS) + "\n", encoding="utf-8")
    return tf.BertTokenizerFast(str(vocabulary), additional_special_tokens=["[DEC]", "[ENC]"])


def _save(folder: Path, model: Any, head: Any, *processors: Any) -> Path:
    """`head` scores the words; here it never chooses a mark."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
        if head.bias is not None:
            head.bias[: len(_MARKS)] = head.bias[len(_MARKS + _WORDS) :] = -100
    model.save_pretrained(str(folder), safe_serialization=True)
    for processor in processors:
        processor.save_pretrained(str(folder))
    return folder
