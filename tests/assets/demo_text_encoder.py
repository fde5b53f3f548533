"""The demo model's text encoder: CLIP's class and vocabulary, 64 wide, 3 layers.

It is warmed up with supervision before the UNet sees it. Without that, the UNet learns colours and
never finds out which words are shapes and backgrounds.
"""

from __future__ import annotations

import json
import random
from typing import Any

import torch
import torch.nn.functional as F
from demo_training import Progress, set_learning_rate, warm_cosine
from drawing import BACKGROUNDS, COLOURS, SHAPES, Description, random_caption, random_description
from make_demo_pictures import DEMO_FOLDER
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

CONFIG_FILE = DEMO_FOLDER / "tiny_clip" / "config.json"
VOCABULARY_FOLDER = DEMO_FOLDER.parent / "clip_vocabulary"
TOKENS = 77
END_TOKEN = 49_407

BATCH = 48
LEARNING_RATE = 1.5e-3
# Classes of a caption: colour, shape and background, each with one more for "not said"; then size.
SIZE_WORDS = ("", "small", "large")
CLASS_COUNTS = (len(COLOURS) + 1, len(SHAPES) + 1, len(BACKGROUNDS) + 1, len(SIZE_WORDS))


def build_text_encoder(seed: int) -> Any:
    """A CLIPTextModel with random weights, of the sizes in the demo's own config file."""
    torch.manual_seed(seed)
    config = json.loads(CONFIG_FILE.read_text(encoding="utf-8"))
    return CLIPTextModel(CLIPTextConfig(**config))


def load_tokenizer() -> Any:
    """CLIP's tokenizer from the vocabulary that ships with the package."""
    files = (str(VOCABULARY_FOLDER / "vocab.json"), str(VOCABULARY_FOLDER / "merges.txt"))
    return CLIPTokenizer(*files, model_max_length=TOKENS)


def token_ids(tokenizer: Any, captions: list[str]) -> torch.Tensor:
    """(N, 77) ids; what is left of the 77 is filled with the end token, as the WebUIs do."""
    encoded = tokenizer(captions, padding="max_length", max_length=TOKENS, truncation=True)
    return torch.tensor(encoded.input_ids)


def embedding_apart(text_encoder: Any) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The token embedding's parameters, and all others: only seen words change in the embedding."""
    embedding: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in text_encoder.named_parameters():
        (embedding if "token_embedding" in name else others).append(parameter)
    return embedding, others


def warm_up(text_encoder: Any, tokenizer: Any, *, steps: int, seed: int) -> None:
    """Teach the text encoder to tell what was said, at the end token and at any token behind it."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    heads = nn.Linear(text_encoder.config.hidden_size, sum(CLASS_COUNTS))
    embedding, others = embedding_apart(text_encoder)
    groups = [
        {"params": others + list(heads.parameters()), "base_lr": LEARNING_RATE},
        {"params": embedding, "base_lr": 2 * LEARNING_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    progress = Progress("text encoder", steps)
    rows = torch.arange(BATCH)
    text_encoder.train()
    for step in range(steps):
        set_learning_rate(optimizer, warm_cosine(step, steps, warm_up=20, hold=0.5, floor=0.02))
        descriptions = [random_description(rng) for _ in range(BATCH)]
        captions = [random_caption(description, rng) for description in descriptions]
        pairs = zip(descriptions, captions, strict=True)
        labels = torch.tensor([said_classes(description, caption) for description, caption in pairs])
        ids = token_ids(tokenizer, captions)
        hidden = text_encoder(ids).last_hidden_state
        ends = (ids == END_TOKEN).int().argmax(1).tolist()

        # Every padded token speaks to the UNet's attention, so each has to know: three at random.
        places = [ends, *([rng.randint(end, TOKENS - 1) for end in ends] for _ in range(3))]
        loss, right = torch.zeros(()), 0.0
        for place in places:
            scores = heads(hidden[rows, torch.tensor(place)]).split(CLASS_COUNTS, dim=1)
            for kind, score in enumerate(scores):
                loss = loss + F.cross_entropy(score, labels[:, kind]) / len(places)
                right += (score.argmax(1) == labels[:, kind]).float().mean().item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right /= len(places) * len(CLASS_COUNTS)
        progress.report(step, loss=loss.item(), right=right)
    text_encoder.eval()


def said_classes(description: Description, caption: str) -> tuple[int, int, int, int]:
    """Numbers of the colour, shape, background and size that the caption really mentions."""
    background = f"{description.background} background"
    without_background = caption.replace(background, "")
    return (
        _number(list(COLOURS), description.colour, without_background),
        _number(list(SHAPES), description.shape, caption),
        list(BACKGROUNDS).index(description.background) if background in caption else len(BACKGROUNDS),
        SIZE_WORDS.index(description.size) if description.size in caption else 0,
    )


def _number(words: list[str], word: str, caption: str) -> int:
    return words.index(word) if word in caption else len(words)
