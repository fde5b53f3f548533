"""Tokens and embeddings: chunks as the hosts make them, and the encoder worked through by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch.nn import functional

from lora_train.core.assets import ASSETS
from lora_train.core.conditioning import conditioning_of
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError
from lora_train.data.epochs import Batch, View
from lora_train.engine.disk_cache import DiskCache
from lora_train.engine.loading import BaseModel, load_tokenizer
from lora_train.engine.previews import PreviewTexts
from lora_train.engine.text import Embeddings, Prompts, encode, pack, tokenize
from lora_train.engine.texts import CachedTexts, TrainedTexts

pytestmark = pytest.mark.compat

BEGIN, END = 49406, 49407
(SD1,) = conditioning_of("sd1").text_encoders
CAT, COMMA = 2368, 267
"""Ids of "cat" and of "," at a word's end, from CLIP's vocabulary."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer()


def words(*ids_and_counts: tuple[int, int]) -> str:
    """A caption of so many cats and commas, e.g. words((CAT, 3), (COMMA, 1))."""
    text = {CAT: "cat", COMMA: ","}
    return " ".join(text[token] for token, count in ids_and_counts for _ in range(count))


# --- token ids ---


def test_known_ids(tokenizer: Any) -> None:
    """OpenAI's own tokenizer gives these."""
    chunks, cut = tokenize(tokenizer, "a photo of a cat", 75)
    assert (chunks, cut) == ([[320, 1125, 539, 320, CAT]], 0)
    row = pack([chunks], BEGIN, END, END)[0, 0].tolist()
    assert row == [BEGIN, 320, 1125, 539, 320, CAT] + [END] * 71
    assert tokenizer("a photo of a cat").input_ids == [BEGIN, 320, 1125, 539, 320, CAT, END]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (BEGIN, END)


def test_empty_caption_is_one_empty_chunk(tokenizer: Any) -> None:
    chunks, cut = tokenize(tokenizer, "", 75)
    assert (chunks, cut) == ([[]], 0)
    assert pack([chunks], BEGIN, END, END).tolist() == [[[BEGIN] + [END] * 76]]


@pytest.mark.parametrize("caption", ["桜の木の下で", "🐈‍⬛✨", "кот, café ñ", "a\nb\t c  d", "ÀÉ" * 200])
def test_any_script(tokenizer: Any, caption: str) -> None:
    chunks, _ = tokenize(tokenizer, caption, 225)
    tokens = [token for chunk in chunks for token in chunk]
    assert tokens
    assert all(0 <= token < BEGIN for token in tokens)


# --- chunks ---


def test_chunks_of_75(tokenizer: Any) -> None:
    assert tokenize(tokenizer, words((CAT, 75)), 225) == ([[CAT] * 75], 0)
    assert tokenize(tokenizer, words((CAT, 76)), 225) == ([[CAT] * 75, [CAT]], 0)
    assert tokenize(tokenizer, words((CAT, 160)), 225) == ([[CAT] * 75, [CAT] * 75, [CAT] * 10], 0)


@pytest.mark.parametrize(("max_tokens", "kept"), [(75, 1), (150, 2), (225, 3)])
def test_longer_captions_are_cut(tokenizer: Any, max_tokens: int, kept: int) -> None:
    chunks, cut = tokenize(tokenizer, words((CAT, 230)), max_tokens)
    assert chunks == [[CAT] * 75] * kept
    assert cut == 230 - 75 * kept


# Automatic1111 (its setting "comma padding backtrack" at 20): a full chunk that goes on with anything but a comma is
# cut behind its last comma, if that is one of its last 20 tokens (places 55 to 74, counted from 0).


@pytest.mark.parametrize(
    ("before", "after", "sizes"),
    [
        (55, 25, (56, 25)),  # comma at place 55: just near enough, the 19 cats behind it move
        (54, 25, (75, 5)),  # at place 54: too far
        (70, 10, (71, 10)),
        (74, 5, (75, 5)),  # the comma is the chunk's last token: nothing has to move
        (75, 5, (75, 6)),  # the comma itself is what does not fit
        (60, 14, (75,)),  # it all fits
    ],
)
def test_cut_at_a_comma(tokenizer: Any, before: int, after: int, sizes: tuple[int, ...]) -> None:
    chunks, cut = tokenize(tokenizer, words((CAT, before), (COMMA, 1), (CAT, after)), 225)
    assert tuple(len(chunk) for chunk in chunks) == sizes
    assert cut == 0
    assert [token for chunk in chunks for token in chunk] == [CAT] * before + [COMMA] + [CAT] * after


def test_last_of_several_commas_counts(tokenizer: Any) -> None:
    caption = words((CAT, 58), (COMMA, 1), (CAT, 5), (COMMA, 1), (CAT, 12))
    chunks, _ = tokenize(tokenizer, caption, 225)
    assert [len(chunk) for chunk in chunks] == [65, 12]


def test_a_comma_of_the_chunk_before_is_forgotten(tokenizer: Any) -> None:
    """Chunk 2 has no comma of its own, so it is full before chunk 3 begins."""
    caption = words((CAT, 60), (COMMA, 1), (CAT, 100))
    chunks, _ = tokenize(tokenizer, caption, 225)
    assert [len(chunk) for chunk in chunks] == [61, 75, 25]


def test_shorter_captions_of_a_batch_get_empty_chunks() -> None:
    ids = pack([[[CAT]], [[CAT] * 75, [CAT]]], BEGIN, END, END)
    assert ids.shape == (2, 2, 77)
    assert ids[0, 1].tolist() == [BEGIN] + [END] * 76
    assert ids[1, 0].tolist() == [BEGIN] + [CAT] * 75 + [END]
    assert ids[1, 1].tolist() == [BEGIN, CAT] + [END] * 75


# --- the encoder ---


class ByHand(NamedTuple):
    """What a text encoder makes of token ids, worked out from its weights alone."""

    states: list[torch.Tensor]
    """The embeddings, then what each layer makes of them, without the final norm."""
    normed: list[torch.Tensor]
    """The same with it."""


def by_hand(text_encoder: Any, ids: torch.Tensor) -> ByHand:
    """CLIP's text transformer, OpenAI's or OpenCLIP's, which has another activation."""
    core = getattr(text_encoder, "text_model", text_encoder)
    weights = dict(core.named_parameters())
    config = text_encoder.config

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def attention(name: str, x: torch.Tensor) -> torch.Tensor:
        heads = [
            linear(f"{name}.{part}_proj", x).unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)
            for part in "qkv"
        ]
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=True)
        return linear(f"{name}.out_proj", mixed.transpose(1, 2).flatten(2))

    x = weights["embeddings.token_embedding.weight"][ids]
    x = x + weights["embeddings.position_embedding.weight"]
    states = [x]
    for index in range(config.num_hidden_layers):
        layer = f"encoder.layers.{index}"
        x = x + attention(f"{layer}.self_attn", norm(f"{layer}.layer_norm1", x))
        inner = linear(f"{layer}.mlp.fc1", norm(f"{layer}.layer_norm2", x))
        is_quick = config.hidden_act == "quick_gelu"
        x = x + linear(f"{layer}.mlp.fc2", inner * torch.sigmoid(1.702 * inner) if is_quick else functional.gelu(inner))
        states.append(x)
    return ByHand(states, [norm("final_layer_norm", state) for state in states])


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
@torch.no_grad()
def test_clip_skip_counts_layers_from_the_end(demo_model: BaseModel, clip_skip: int) -> None:
    """State -n, then the final norm. The demo model has 3 layers: 3 is the output of the first one."""
    encoder = demo_model.text_encoders[0]
    prompts = Prompts(demo_model, clip_skip=clip_skip, max_tokens=150)
    ids = prompts.ids(["sks, white background", "a red circle " * 30])
    assert ids.shape == (1, 2, 2, 77)
    wanted = by_hand(encoder, ids.reshape(4, 77)).normed[-clip_skip].reshape(2, 154, -1)
    encoded = prompts.encode(ids)
    torch.testing.assert_close(encoded.hidden, wanted, rtol=1e-4, atol=1e-5)
    assert encoded.pooled is None


def test_clip_skip_has_a_limit(demo_model: BaseModel) -> None:
    with pytest.raises(ConfigError, match=r"clip_skip.*: 4 is more than the 3 layers"):
        Prompts(demo_model, clip_skip=4, max_tokens=75)


def test_cut_captions_are_remembered(demo_model: BaseModel) -> None:
    prompts = Prompts(demo_model, clip_skip=1, max_tokens=75)
    long = words((CAT, 80))
    prompts.ids(["cat", long])
    prompts.ids([long])
    assert prompts.cut_captions == {long: 5}


# --- Stable Diffusion 2 and SDXL ---


def small_encoder(seed: int, width: int, layers: int, *, projection: bool = False) -> Any:
    """OpenCLIP's activation, random weights, the ids of CLIP's begin and end."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        hidden_act="gelu",
        projection_dim=24,
        bos_token_id=BEGIN,
        eos_token_id=END,
    )
    encoder = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()
    with torch.no_grad():  # so that the final norm is no identity, and every layer does something
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder


def model_of(family: str, *text_encoders: Any) -> Any:
    """As much of a base model as its prompts need; OpenCLIP's tokenizers pad with 0, which is "!"."""
    from transformers import CLIPTokenizer

    folder = ASSETS / "clip_vocabulary"
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    open_clip = CLIPTokenizer(*files, pad_token="!")
    tokenizers = (open_clip,) if family == "sd2" else (CLIPTokenizer(*files), open_clip)
    return SimpleNamespace(family=family, text_encoders=text_encoders, tokenizers=tokenizers)


CAPTIONS = ["a red circle", words((CAT, 80))]
"""One chunk and two."""


@pytest.mark.parametrize("clip_skip", [1, 2, 12])
@torch.no_grad()
def test_sd2_takes_the_last_state_with_its_norm(clip_skip: int) -> None:
    """Whatever the clip skip, also where the encoder has fewer layers."""
    encoder = small_encoder(1, 32, 3)
    prompts = Prompts(model_of("sd2", encoder), clip_skip=clip_skip, max_tokens=150)
    ids = prompts.ids(CAPTIONS)
    assert ids[0, 0, 0].tolist() == [BEGIN, 320, 736, 7117, END] + [0] * 72
    assert ids[0, 0, 1].tolist() == [BEGIN, END] + [0] * 75
    encoded = prompts.encode(ids)
    wanted = by_hand(encoder, ids.reshape(4, 77)).normed[-1].reshape(2, 154, 32)
    torch.testing.assert_close(encoded.hidden, wanted, rtol=1e-4, atol=1e-5)
    assert encoded.pooled is None


@pytest.mark.parametrize("clip_skip", [1, 2, 12])
@torch.no_grad()
def test_sdxl_takes_the_penultimate_states_side_by_side(clip_skip: int) -> None:
    """Without the norm; pooled is the second encoder's last state at the first chunk's end, normed and projected."""
    first, second = small_encoder(1, 32, 3), small_encoder(2, 48, 4, projection=True)
    prompts = Prompts(model_of("sdxl", first, second), clip_skip=clip_skip, max_tokens=150)
    ids = prompts.ids(CAPTIONS)
    assert ids.shape == (2, 2, 2, 77)
    assert ids[0, 0, 0].tolist() == [BEGIN, 320, 736, 7117, END] + [END] * 72
    assert ids[1, 0, 0].tolist() == [BEGIN, 320, 736, 7117, END] + [0] * 72
    encoded = prompts.encode(ids)
    one, other = by_hand(first, ids[0].reshape(4, 77)), by_hand(second, ids[1].reshape(4, 77))
    wanted = torch.cat([one.states[-2], other.states[-2]], dim=-1).reshape(2, 154, 80)
    torch.testing.assert_close(encoded.hidden, wanted, rtol=1e-4, atol=1e-5)

    at_end = other.normed[-1].reshape(2, 2, 77, 48)[[0, 1], 0, [4, 76]]  # "a red circle" ends at place 4
    projected = at_end @ second.text_projection.weight.T
    assert encoded.pooled is not None
    torch.testing.assert_close(encoded.pooled, projected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_sdxl_cached_texts_equal_trained_ones() -> None:
    model = model_of("sdxl", small_encoder(1, 32, 2), small_encoder(2, 48, 2, projection=True))
    prompts = Prompts(model, clip_skip=1, max_tokens=150)
    trained, cached = TrainedTexts(prompts, torch.device("cpu")), CachedTexts(prompts)
    trained.prepare(BATCHES)
    cached.prepare(BATCHES)
    for batch in BATCHES:
        one, other = trained.embeddings(batch), cached.embeddings(batch)
        torch.testing.assert_close(one.hidden, other.hidden, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.pooled, other.pooled, rtol=1e-4, atol=1e-5)
    # Three captions of one chunk and one of two, 80 numbers a token, and 24 pooled ones a caption, in float32.
    assert cached.count == 4
    assert cached.size_bytes == 4 * (5 * 77 * 80 + 4 * 24)


def test_sdxl_trains_both_encoders() -> None:
    first, second = small_encoder(1, 32, 2), small_encoder(2, 48, 2, projection=True)
    prompts = Prompts(model_of("sdxl", first, second), clip_skip=1, max_tokens=75)
    encoded = prompts.encode(prompts.ids(["cat"]))
    assert encoded.pooled is not None
    (encoded.hidden.sum() + encoded.pooled.sum()).backward()
    for encoder in (first, second):
        core = getattr(encoder, "text_model", encoder)
        assert core.encoder.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_embeddings_join_what_they_split() -> None:
    numbers = torch.arange(24.0).reshape(2, 3, 4)
    for whole in (Embeddings(numbers), Embeddings(numbers, numbers[:, 0])):
        rows = whole.split()
        assert [len(row.hidden) for row in rows] == [1, 1]
        again = Embeddings.join(rows[::-1])
        assert torch.equal(again.hidden, numbers.flip(0))
        assert (again.pooled is None) == (whole.pooled is None)
        assert torch.equal(rows[1].expand(3).hidden, numbers[[1, 1, 1]])
        assert whole.size_bytes == (96 if whole.pooled is None else 128)


# --- for the loop ---


def batch_of(*captions: str) -> Batch:
    views = tuple(
        View(source=index, epoch=0, position=index, flip=False, caption=caption)
        for index, caption in enumerate(captions)
    )
    return Batch((64, 64), views)


BATCHES = [
    batch_of("sks, white background", "", words((CAT, 100))),
    batch_of("a red circle", "sks, white background"),
    batch_of("", ""),
]


@torch.no_grad()
def test_cached_texts_equal_trained_ones(demo_model: BaseModel) -> None:
    """Each batch is as long as its own longest caption, whatever was encoded together with it."""
    prompts = Prompts(demo_model, clip_skip=2, max_tokens=150)
    trained, cached = TrainedTexts(prompts, torch.device("cpu")), CachedTexts(prompts)
    trained.prepare(BATCHES)
    cached.prepare(BATCHES)
    for batch, tokens in zip(BATCHES, (154, 77, 77), strict=True):
        one, other = trained.embeddings(batch).hidden, cached.embeddings(batch).hidden
        assert one.shape == (len(batch.views), tokens, 64)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert torch.equal(cached.embeddings(BATCHES[2]).hidden[0], cached.embeddings(BATCHES[0]).hidden[1, :77])


def test_cached_texts_without_their_encoder(demo_model: BaseModel) -> None:
    prompts = Prompts(demo_model, clip_skip=1, max_tokens=75)
    cached = CachedTexts(prompts)
    cached.prepare(BATCHES[1:])
    before = cached.embeddings(BATCHES[1]).hidden
    cached.let_go()
    cached.prepare(BATCHES[1:])
    assert torch.equal(cached.embeddings(BATCHES[1]).hidden, before)
    assert not before.requires_grad
    with pytest.raises(RuntimeError, match="let go"):
        cached.prepare([batch_of("something new")])


def test_encoders_that_are_still_needed_rest_between_epochs(
    demo_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (encoder,) = demo_model.text_encoders
    moved: list[Any] = []
    monkeypatch.setattr(encoder, "to", moved.append)
    prompts = Prompts(demo_model, clip_skip=1, max_tokens=75)
    cached = CachedTexts(prompts)
    cached.prepare(BATCHES[:1])
    assert moved == []
    cached.let_encoders_rest()
    cached.prepare(BATCHES[1:2])
    previews = PreviewTexts(prompts, TrainSettings(preview_prompts=("a circle",)))
    previews.encode()
    home = prompts.device
    assert moved == ["cpu", home, "cpu", home, "cpu"]


def test_texts_from_the_disk_are_the_same_and_need_no_encoder(demo_model: BaseModel, tmp_path: Path) -> None:
    class Unloaded:
        """A base model whose text encoders are gone."""

        family, tokenizers, device = demo_model.family, demo_model.tokenizers, demo_model.device

    def read(model: Any, kept: DiskCache | None) -> list[torch.Tensor]:
        prompts = Prompts(model, clip_skip=1, max_tokens=150, kept=kept)
        cached = CachedTexts(prompts)
        cached.prepare(BATCHES)
        with torch.no_grad():
            previews = prompts.encode_prompt("a (red:1.4) circle"), prompts.encode_prompt("", is_negative=True)
        return [cached.embeddings(batch).hidden for batch in BATCHES] + [preview.hidden for preview in previews]

    def kept() -> DiskCache:
        return DiskCache(tmp_path / "texts", ["model"], print)

    plain, first, second = read(demo_model, None), read(demo_model, kept()), read(Unloaded(), kept())
    assert all(torch.equal(own, one) for own, one in zip(plain, first, strict=True))
    assert all(torch.equal(own, one) for own, one in zip(plain, second, strict=True))
    with torch.no_grad(), pytest.raises(AttributeError, match="text_encoders"):
        Prompts(cast("Any", Unloaded()), clip_skip=1, max_tokens=150, kept=kept()).encode_prompt("a (red:1.5) circle")


def test_gradients_are_never_taken_from_the_disk(demo_model: BaseModel, tmp_path: Path) -> None:
    prompts = Prompts(demo_model, clip_skip=1, max_tokens=75, kept=DiskCache(tmp_path / "texts", [], print))
    prompts.encode(prompts.ids(["red"]))
    assert not (tmp_path / "texts").exists()


def test_trained_texts_carry_gradients(demo_model: BaseModel) -> None:
    """`encode` itself must not stop them: the text encoder's LoRA learns through it."""
    ids = torch.tensor([[[BEGIN, CAT] + [END] * 75]])
    encoder = demo_model.text_encoders[0]
    encoder.requires_grad_(True)
    try:
        assert encode(encoder, ids, SD1, 2).hidden.requires_grad
    finally:
        encoder.requires_grad_(False)
