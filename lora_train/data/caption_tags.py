"""The tags of all captions together: how many pictures have each, which are common, which occur once."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from lora_train.data.captions import split_tags

_COMMON_SHARE = 0.8


class TagCount(msgspec.Struct, frozen=True):
    """A tag, and how many pictures have it."""

    tag: str
    """In the spelling that occurs most."""
    pictures: int


def tag_key(tag: str) -> str:
    """The form in which two spellings are the same tag: letter case, composed letters and blanks don't matter."""
    return " ".join(unicodedata.normalize("NFC", tag.casefold()).split())


def count_tags(captions: Iterable[str]) -> list[TagCount]:
    """Every tag with its number of captions, the most frequent first, then by name."""
    spellings: defaultdict[str, Counter[str]] = defaultdict(Counter)
    pictures: Counter[str] = Counter()
    for caption in captions:
        keys: set[str] = set()
        for tag in split_tags(caption):
            key = tag_key(tag)
            keys.add(key)
            spellings[key][tag] += 1
        pictures.update(keys)
    found = [TagCount(_commonest(spellings[key]), count) for key, count in pictures.items()]
    return sorted(found, key=lambda count: (-count.pictures, tag_key(count.tag)))


def common_tags(counts: Sequence[TagCount], total: int) -> list[str]:
    """Tags of more than 80 % of `total` pictures: they learn what the trigger word should."""
    return [count.tag for count in counts if count.pictures > _COMMON_SHARE * total]


def one_off_tags(counts: Sequence[TagCount]) -> list[str]:
    """Tags of a single picture: often misspelt, and too rare to be learnt."""
    return [count.tag for count in counts if count.pictures == 1]


def _commonest(spellings: Counter[str]) -> str:
    return min(spellings, key=lambda tag: (-spellings[tag], tag))
