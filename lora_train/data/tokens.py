"""How many CLIP tokens a caption has, and which part of it each 75-token chunk holds; without torch.

The ids are those of the transformers that is installed here, whose rules for cleaning a text changed twice: since
version 5 letters are composed (NFC), blanks joined and case dropped; before, ftfy did it where it is installed, and
else rules made for BERT, which up to 4.30 also took accents away and set signs apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from lora_train.core.assets import ASSETS
from lora_train.core.errors import DatasetError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNK_TOKENS = 75
_COMMA_BACKTRACK = 20
"""A chunk that fills up is cut at its last comma, when that is among its last 20 tokens (the hosts' default)."""

_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # OpenAI's, of CLIP
)
_BLANKS = re.compile(r"[ \t\n\v\f\r\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
"""Unicode's white space; Python's `\\s` has four control characters more."""
_HAN = re.compile(
    "([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f])"
)
"""The blocks of Chinese characters that BERT's rules set apart."""


class Chunk(msgspec.Struct, frozen=True):
    """What goes through the text encoder at once."""

    text: str
    """As the tokenizer sees it: lower case, single blanks."""
    tokens: list[str]
    """The text of each token; "" where a character takes several, for all but the first."""


class Chunks(msgspec.Struct, frozen=True):
    """A text as it is trained: its chunks, and what the limit cuts off."""

    chunks: list[Chunk]
    """At least one; an empty text's is empty."""
    cut: Chunk
    """What is not trained; empty where all is."""
    token_count: int
    """Of the whole text, without begin, end and padding."""


class _Encoded(NamedTuple):
    text: str
    """Cleaned; the offsets are characters of it."""
    ids: list[int]
    offsets: list[tuple[int, int]]


def has_tokenizer() -> bool:
    """Whether tokens can be counted here; nothing is imported for that."""
    return find_spec("tokenizers") is not None


def token_count(text: str) -> int:
    """Tokens of a text, without begin, end and padding. Raises DatasetError where `tokenizers` is missing."""
    return _borders(text, _rules())[-1]


def cut_count(text: str, max_tokens: int) -> int:
    """How many tokens `max_tokens` (75, 150 or 225) cut off; a chunk that ends at a comma leaves less room. Raises as
    `token_count`."""
    borders = _borders(text, _rules())
    return borders[-1] - borders[min(max_tokens // CHUNK_TOKENS, len(borders) - 1)]


def token_ids(text: str) -> list[int]:
    """The ids of `transformers.CLIPTokenizer`, without begin and end. Raises as `token_count`."""
    return _encode(text, _rules()).ids


def chunks(text: str, max_tokens: int) -> Chunks:
    """The chunks of a text, and what more than `max_tokens` (75, 150 or 225) cut off. Raises as `token_count`."""
    encoded = _encode(text, _rules())
    borders = chunk_borders(encoded.ids, _comma())
    kept = [_chunk(encoded, start, end) for start, end in list(pairwise(borders))[: max_tokens // CHUNK_TOKENS]]
    cut = _chunk(encoded, borders[len(kept)], len(encoded.ids))
    return Chunks(kept, cut, len(encoded.ids))


def chunk_borders(ids: Sequence[int], comma: int) -> list[int]:
    """Where chunks of at most 75 token ids begin, and at last the number of ids; [0, 0] for no ids.

    As the hosts do it: a chunk that is full ends after its last comma, if that is one of its last 20 tokens and the
    next token is no comma itself.
    """
    borders, last_comma = [0], -1
    for index, token in enumerate(ids):
        if index - borders[-1] == CHUNK_TOKENS:
            is_near = token != comma and last_comma - borders[-1] >= CHUNK_TOKENS - _COMMA_BACKTRACK
            borders.append(last_comma + 1 if is_near else index)
            last_comma = -1
        if token == comma:
            last_comma = index
    return [*borders, len(ids)]


def _chunk(encoded: _Encoded, start: int, end: int) -> Chunk:
    offsets = encoded.offsets[start:end]
    if not offsets:
        return Chunk("", [])
    told = encoded.offsets[start - 1][1] if start else 0
    tokens: list[str] = []
    for first, last in offsets:
        tokens.append(encoded.text[max(first, told) : last])
        told = max(told, last)
    return Chunk(encoded.text[offsets[0][0] : offsets[-1][1]], tokens)


# --- as transformers does it ---


@lru_cache(maxsize=20_000)
def _borders(text: str, rules: Callable[[str], str]) -> list[int]:
    return chunk_borders(_encode(text, rules).ids, _comma())


def _comma() -> int:
    comma = _tokenizer().token_to_id(",</w>")
    assert comma is not None, "it is in CLIP's vocabulary"
    return comma


def _encode(text: str, rules: Callable[[str], str]) -> _Encoded:
    tokenizer = _tokenizer()
    cleaned = rules(text)
    encoding = tokenizer.encode(cleaned, add_special_tokens=False)
    return _Encoded(cleaned, encoding.ids, encoding.offsets)


@lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer:
    try:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    except ImportError as error:
        raise DatasetError(
            f"Tokens can't be counted: the package tokenizers is missing or broken ({error}).",
            "It comes with transformers: install that again.",
        ) from None
    folder = ASSETS / "clip_vocabulary"
    vocabulary, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=_END))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    cast("Any", tokenizer).add_special_tokens([_BEGIN, _END])
    return tokenizer


@lru_cache(maxsize=1)
def _rules() -> Callable[[str], str]:
    """How the installed transformers cleans a text."""
    try:
        release = tuple(int(part) for part in version("transformers").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return _clean_composed
    if release >= (5, 0):
        return _clean_composed
    try:
        from ftfy import fix_text  # pyright: ignore[reportMissingImports, reportUnknownVariableType]
    except ImportError:
        return _clean_as_bert if release >= (4, 31) else _clean_as_old_bert
    fixed = cast("Callable[[str], str]", fix_text)
    return lambda text: " ".join(fixed(text).split()).lower()


def _clean_composed(text: str) -> str:
    """Letter by letter, so a final sigma is an ordinary one."""
    return "".join(letter.lower() for letter in _BLANKS.sub(" ", unicodedata.normalize("NFC", text)))


def _clean_as_bert(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", _readable(text)).split()).lower()


def _clean_as_old_bert(text: str) -> str:
    """Accents are taken away, and every sign is set apart."""
    words = [unicodedata.normalize("NFD", word.lower()) for word in _readable(text).split()]
    letters = (letter for letter in " ".join(words) if unicodedata.category(letter) != "Mn")
    return " ".join("".join(f" {letter} " if _is_sign(letter) else letter for letter in letters).split())


def _readable(text: str) -> str:
    """Without what can't be seen, and with blanks around each Chinese character."""
    blank = "".join(" " if letter in "\t\n\r" else letter for letter in text)
    seen = (letter for letter in blank if letter != "\ufffd" and not unicodedata.category(letter).startswith("C"))
    return _HAN.sub(r" \1 ", "".join(seen))


def _is_sign(letter: str) -> bool:
    """Punctuation, and all of ASCII that is no letter, digit or blank."""
    return unicodedata.category(letter).startswith("P") or (letter.isascii() and not letter.isalnum() and letter != " ")
