"""From a WD14 tagger's scores to the tags of a caption."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.errors import ModelError
from lora_train.data.captions import split_tags

GENERAL, CHARACTER, RATING = 0, 4, 9
"""Danbooru's numbers of the categories; 9 is the taggers' own, for how revealing a picture is."""

_WORD = re.compile(r"[^\W_]{2}")


class Tag(NamedTuple):
    """One output of a tagger."""

    name: str
    """As in the model's list, with underscores."""
    category: int


def read_tags(path: Path) -> list[Tag]:
    """The tags of a model's `selected_tags.csv`, in the order of its outputs.

    Raises ModelError for a file that can't be read or has no columns `name` and `category`.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return [Tag(row["name"], int(row["category"])) for row in csv.DictReader(stream)]
    except OSError as error:
        raise ModelError(f"{path} can't be read ({error.strerror}).") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ModelError(
            f"{path} is not the list of a tagger's tags: it lacks the columns name and category, or a number in one.",
            "Take selected_tags.csv from where model.onnx came from.",
        ) from error


def tags_of(scores: Sequence[float], tags: Sequence[Tag], settings: CaptionSettings) -> list[str]:
    """The tags that are written, from one score (0 to 1) for each of `tags`.

    Kept are general tags and characters that reach their threshold. Sorted by score, characters stand among the
    general ones, as WebUI users know it; else all stand in the model's order, as in kohya's captions: general ones
    first. The likeliest rating, if wanted, comes last and is not what `max_tags` cuts off. Tags of other categories
    (artists, works, the site's own notes) are left out.
    """
    thresholds = {GENERAL: settings.wd14_threshold, CHARACTER: settings.wd14_character_threshold}
    excluded = {_folded(tag) for tag in split_tags(settings.excluded_tags)}
    allowed = [(score, tag) for score, tag in zip(scores, tags, strict=True) if _folded(tag.name) not in excluded]
    found = [(score, tag) for score, tag in allowed if tag.category in thresholds and score >= thresholds[tag.category]]
    if settings.sort_by_score:
        found.sort(key=lambda pair: -pair[0])
    ratings = [pair for pair in allowed if pair[1].category == RATING] if settings.wd14_rating else []
    last = [max(ratings, key=lambda pair: pair[0])[1]] if ratings else []
    kept = [tag for _, tag in found]
    if settings.max_tags:
        kept = kept[: settings.max_tags - len(last)]
    return [written(tag.name, settings.underscores_to_blanks) for tag in kept + last]


def written(name: str, underscores_to_blanks: bool) -> str:
    """A tag as it stands in a caption, brackets unescaped: prompts need that, captions don't.

    A face such as `>_<`, `^_^` or `0_0` keeps its underscore. It is known by having no two letters or digits side by
    side, which every tag of words has.
    """
    name = " ".join(name.split())
    return name.replace("_", " ") if underscores_to_blanks and _WORD.search(name) else name


def _folded(tag: str) -> str:
    """Equal for the spellings of a tag that a person takes for the same."""
    return " ".join(unicodedata.normalize("NFC", tag).replace("_", " ").split()).casefold()
