"""Prompts on the text encoders: weights, BREAK, and SDXL's empty negative prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lora_train.engine.loading import BaseModel
from lora_train.engine.text import Embeddings, Prompts

pytestmark = pytest.mark.compat


@torch.no_grad()
def encode(model: BaseModel, prompt: str, *, clip_skip: int = 1, is_negative: bool = False) -> Embeddings:
    return Prompts(model, clip_skip=clip_skip, max_tokens=75).encode_prompt(prompt, is_negative=is_negative)


@torch.no_grad()
def plain(model: BaseModel, captions: list[str], *, clip_skip: int = 1) -> torch.Tensor:
    """Captions side by side, without any weights."""
    rows = Prompts(model, clip_skip=clip_skip, max_tokens=75).encode_each(captions)
    return torch.cat([row.hidden for row in rows], dim=1)


def weighted(hidden: torch.Tensor, weight_of_token: dict[int, float]) -> torch.Tensor:
    """The definition, number by number, of one chunk (1, 77, D)."""
    rows = hidden[0].double().tolist()
    numbers = [number for row in rows for number in row]
    new = [[number * weight_of_token.get(place, 1.0) for number in row] for place, row in enumerate(rows)]
    after = [number for row in new for number in row]
    factor = (sum(numbers) / len(numbers)) / (sum(after) / len(after))
    return torch.tensor([[[number * factor for number in row] for row in new]], dtype=torch.float32)


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_weights_of_tokens(demo_model: BaseModel, clip_skip: int) -> None:
    """A token's place is counted behind the begin token."""
    wanted = weighted(plain(demo_model, ["a red circle"], clip_skip=clip_skip), {2: 1.3, 3: 1 / 1.1})
    found = encode(demo_model, "a (red:1.3) [circle]", clip_skip=clip_skip).hidden
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_prompt_without_signs_is_a_caption(demo_model: BaseModel) -> None:
    assert torch.equal(encode(demo_model, "a red circle").hidden, plain(demo_model, ["a red circle"]))
    assert torch.equal(encode(demo_model, "a red <lora:x:1>circle").hidden, plain(demo_model, ["a red circle"]))
    assert torch.equal(encode(demo_model, r"a \(red\)").hidden, plain(demo_model, ["a (red)"]))


def test_captions_keep_their_brackets(demo_model: BaseModel) -> None:
    assert not torch.equal(plain(demo_model, ["a (red)"]), encode(demo_model, "a (red)").hidden)


def test_breaks_and_long_prompts(demo_model: BaseModel) -> None:
    """Each chunk is by itself; nothing is cut off, whatever the limit of captions is."""
    found = encode(demo_model, "a red circle BREAK blue").hidden
    torch.testing.assert_close(found, plain(demo_model, ["a red circle", "blue"]))
    assert encode(demo_model, "cat " * 160).hidden.shape[1] == 3 * 77


def test_each_chunk_keeps_its_own_mean(demo_model: BaseModel) -> None:
    found = encode(demo_model, "a (red:1.5) circle BREAK blue").hidden
    wanted = [weighted(plain(demo_model, ["a red circle"]), {2: 1.5}), plain(demo_model, ["blue"])]
    torch.testing.assert_close(found, torch.cat(wanted, dim=1), rtol=1e-4, atol=1e-5)


def test_sdxl(model_of: Callable[[str], Any]) -> None:
    """Each encoder's part is weighted by itself; the pooled embedding is that of the first chunk, without weights."""
    model = model_of("sdxl")
    prompts = Prompts(model, clip_skip=1, max_tokens=75)
    with torch.no_grad():
        (caption,) = prompts.encode_each(["a red circle"])
    found = encode(model, "a (red:1.3) circle BREAK (blue)")
    widths = [encoder.config.hidden_size for encoder in model.text_encoders]
    own, theirs = caption.hidden.split(widths, dim=-1), found.hidden[:, :77].split(widths, dim=-1)
    for before, after in zip(own, theirs, strict=True):
        torch.testing.assert_close(after, weighted(before, {2: 1.3}), rtol=1e-3, atol=1e-5)
    assert found.pooled is not None
    assert caption.pooled is not None
    torch.testing.assert_close(found.pooled, caption.pooled)


def test_an_empty_negative_prompt(model_of: Callable[[str], Any], demo_model: BaseModel) -> None:
    """For SDXL the hosts put zeros there; a positive one, and one of another family, is encoded."""
    sdxl = model_of("sdxl")
    negative = encode(sdxl, "<lora:x:1>", is_negative=True)
    assert negative.pooled is not None
    assert not negative.hidden.any()
    assert not negative.pooled.any()
    assert negative.hidden.shape[1] == 77
    assert encode(sdxl, "").hidden.any()
    assert encode(sdxl, "blue", is_negative=True).hidden.any()
    assert torch.equal(encode(demo_model, "", is_negative=True).hidden, plain(demo_model, [""]))
