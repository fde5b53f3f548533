"""Token ids, counts and chunks without transformers, held against transformers."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("tokenizers")

from lora_train.core.errors import DatasetError
from lora_train.data import tokens

pytestmark = pytest.mark.compat

CAPTIONS = [
    *("", " ", "a photo of a cat", "1girl, solo, long hair", "a\nb\t c  d\u2028e\x85f", "a_b-c/d (e:1.2) [x]"),
    *("桜の木の下で", "黒髪, 微笑み, ｶﾒﾗ目線", "女孩，黑色长发。", "한국어 텍스트", "नमस्ते दुनिया", "عربى", "ไทย"),
    *("🐈‍⬛✨ cat", "🇯🇵 flag 👩🏽‍🚀", "\ufe0f\u200d", "кот, café ñ", "CAFÉ ÀÉ", "cafe\u0301", "straße ẞ", "ǅ"),
    *("ΣΊΣΥΦΟΣ ΣΑΣ", "İstanbul", "ﬁne “quotes” ‘x’", "Ｆｕｌｌ　Ｗｉｄｔｈ，", "\u200bzero\ufeffwidth \x07", "神"),
    *("it's they're I'll I'd can't we've I'm DON'T", "girl's dress, '90s", "...!!??''s '' 's", ":3 >_< ^^; -_-"),
    *("2024 12345 3.14", "٣٤٥ ½ ² Ⅳ", "&amp; &lt;b&gt;", "x" * 300, "<|endoftext|> x <|startoftext|>"),
]
LETTERS = (
    "abc ABC,.'\"-_()1234567890éàüñßçœ猫犬の女ー少年アイウ💖😀🐱ąęłиқ\u3000\n\t、。!?&<>|:;#@αβΣσς\u0301\u200d\ufe0f"
)


def captions() -> list[str]:
    """The listed ones and 300 of random letters."""
    draw = random.Random(1)
    return CAPTIONS + ["".join(draw.choices(LETTERS, k=draw.randint(1, 60))) for _ in range(300)]


@pytest.fixture(scope="module")
def clip() -> Any:
    pytest.importorskip("transformers")
    from lora_train.engine.loading import load_tokenizer

    return load_tokenizer()


def test_ids_are_those_of_the_installed_transformers(clip: Any) -> None:
    for caption in captions():
        expected = clip(caption, add_special_tokens=False, truncation=False).input_ids
        assert tokens.token_ids(caption) == expected, repr(caption)
        assert tokens.token_count(caption) == len(expected)


def test_chunks_are_those_of_training(clip: Any) -> None:
    from lora_train.engine.text import tokenize

    draw = random.Random(2)
    words = [
        "long hair",
        "1girl",
        "猫",
        "looking at viewer",
        "🐈‍⬛",
        "a very long sentence without any comma at all",
        "",
    ]
    for _ in range(100):
        caption = draw.choice([", ", " "]).join(draw.choices(words, k=draw.randint(0, 150)))
        for limit in (75, 150, 225):
            kept, cut = tokenize(clip, caption, limit)
            told = tokens.chunks(caption, limit)
            assert [len(chunk.tokens) for chunk in told.chunks] == [len(chunk) for chunk in kept]
            assert len(told.cut.tokens) == cut == tokens.cut_count(caption, limit)
            assert told.token_count == sum(map(len, kept)) + cut


def test_known_ids_and_texts() -> None:
    """OpenAI's own tokenizer gives these ids."""
    assert tokens.token_ids("a photo of a cat") == [320, 1125, 539, 320, 2368]
    told = tokens.chunks("A Photo,  of", 75)
    (chunk,) = told.chunks
    assert chunk.tokens == ["a", "photo", ",", "of"]
    assert chunk.text.replace(" ,", ",") == "a photo, of", "transformers 4.30 without ftfy sets signs apart"
    assert (told.cut, told.token_count) == (tokens.Chunk("", []), 4)
    assert tokens.chunks("", 150) == tokens.Chunks([tokens.Chunk("", [])], tokens.Chunk("", []), 0)


def test_a_letter_of_several_tokens_is_told_once() -> None:
    (chunk,) = tokens.chunks("x 🫠 y", 75).chunks
    assert len(chunk.tokens) > 3, "it takes more than one"
    assert [text for text in chunk.tokens if text] == ["x", "🫠", "y"]


def test_what_is_cut_off_is_told() -> None:
    """A tag of five words and a comma is six tokens: the 13th does not fit into a chunk any more."""
    tags = ["a very big red cat"] * 30
    told = tokens.chunks(", ".join(tags), 75)
    assert told.chunks[0].text.replace(" ,", ",") == ", ".join(tags[:12]) + ","
    assert told.cut.text.replace(" ,", ",") == ", ".join(tags[12:])
    assert told.token_count == 179
    assert len(told.cut.tokens) == tokens.cut_count(", ".join(tags), 75) == 179 - 72
    assert tokens.cut_count(", ".join(tags), 150) == 179 - 144, "each chunk that ends at a comma leaves room"
    assert tokens.cut_count(", ".join(tags), 225) == 0


@pytest.mark.parametrize(
    ("ids", "borders"),
    [
        ("", [0, 0]),
        ("x" * 75, [0, 75]),
        ("x" * 76, [0, 75, 76]),
        ("x" * 54 + "," + "x" * 30, [0, 75, 85]),  # the comma is the 21st from the end
        ("x" * 55 + "," + "x" * 30, [0, 56, 86]),
        ("x" * 75 + ",x", [0, 75, 77]),  # a comma itself begins the next one
        ("x" * 60 + "," + "x" * 14 + ",", [0, 75, 76]),
        ("," * 200, [0, 75, 150, 200]),
    ],
)
def test_borders_by_hand(ids: str, borders: list[int]) -> None:
    assert tokens.chunk_borders([1 if sign == "," else 0 for sign in ids], comma=1) == borders
    assert all(end - start <= 75 for start, end in pairwise(borders))


def test_torch_and_transformers_stay_out() -> None:
    script = (
        "import sys; from lora_train.data.tokens import token_count; assert token_count('a cat') == 2\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens._tokenizer.cache_clear()
    tokens._borders.cache_clear()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DatasetError, match="tokenizers is missing") as told:
        tokens.token_count("a cat")
    assert told.value.hint
    monkeypatch.undo()
    assert tokens.token_count("a cat") == 2


@pytest.mark.parametrize(
    ("release", "caption", "cleaned"),
    [
        ("5.24.0", "Cafe\u0301  ΣΑΣ", "café σασ"),
        ("4.46.1", "Cafe\u0301  ΣΑΣ 猫犬", "café σας 猫 犬"),
        ("4.30.2", "Café long-haired", "cafe long - haired"),
        (None, "Café  x", "café x"),
    ],
)
def test_rules_follow_the_release(
    monkeypatch: pytest.MonkeyPatch, release: str | None, caption: str, cleaned: str
) -> None:
    """Without ftfy. What each release does is read from its own code."""

    def version(name: str) -> str:
        if release is None:
            raise tokens.PackageNotFoundError
        return release

    monkeypatch.setattr(tokens, "version", version)
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert tokens._rules.__wrapped__()(caption) == cleaned
