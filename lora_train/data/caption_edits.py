"""Edits of many captions at once: what a person asks for, and the captions that it changes.

A caption is taken for tags between commas, joined again by ", ", so a sentence with commas stays the sentence it is.
What an edit does not touch stays as it was, to the last blank.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from lora_train.core.errors import ConfigError
from lora_train.data.caption_tags import tag_key
from lora_train.data.captions import compose_caption, split_tags
from lora_train.data.expressions import LONGEST_CAPTION, replace_all

_LONGEST_TEXT = 5_000
"""Characters that a person may type into an edit."""
_MOST_COMPARED = 50_000_000
"""Characters of a text to find, times those of all captions: more than this may take minutes, and gets a time limit."""


class _Edit(msgspec.Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True):
    """An edit of captions; `kind` tells in JSON which one."""


class AddTags(_Edit, frozen=True, tag="add"):
    """Tags, between commas, that a caption does not have yet. "after trigger" is the start where it has no trigger."""

    tags: str
    place: Literal["start", "end", "after trigger"] = "end"


class RemoveTags(_Edit, frozen=True, tag="remove"):
    """Whole tags, between commas."""

    tags: str


class Replace(_Edit, frozen=True, tag="replace"):
    r"""What is found, for something else or nothing.

    Within "tag", `find` has whole tags between commas, which become those of `replacement`; within "text" it is any
    part of the caption. As an expression it is searched for in each tag or in the whole caption, and `replacement` may
    have \1. A tag that the caption has already is not added again.
    """

    find: str
    replacement: str = ""
    within: Literal["tag", "text", "tag expression", "caption expression"] = "tag"


class PrependText(_Edit, frozen=True, tag="prepend"):
    """Text before each caption."""

    text: str
    joined_by: Literal[", ", " "] = ", "


class AppendText(_Edit, frozen=True, tag="append"):
    """Text after each caption."""

    text: str
    joined_by: Literal[", ", " "] = ", "


class SortTags(_Edit, frozen=True, tag="sort"):
    """A to Z, the most frequent of the dataset first, or the shortest first; the trigger word stays in front."""

    by: Literal["alphabet", "frequency", "length"] = "alphabet"


class DedupeTags(_Edit, frozen=True, tag="dedupe"):
    """Each tag once, where it stands first."""


class TriggerFirst(_Edit, frozen=True, tag="trigger first"):
    """The trigger word in front, as training puts it there."""


class SetText(_Edit, frozen=True, tag="set"):
    """The same caption for all."""

    text: str


Operation = AddTags | RemoveTags | Replace | PrependText | AppendText | SortTags | DedupeTags | TriggerFirst | SetText


class Context(msgspec.Struct, frozen=True):
    """What an edit needs to know of the dataset."""

    trigger_word: str = ""
    frequencies: Mapping[str, int] = {}
    """`tag_key` of each tag -> how many pictures have it."""


def apply(operation: Operation, captions: Mapping[str, str], context: Context) -> dict[str, str]:
    """The captions, by their keys, that become others; the rest is left out.

    Raises ConfigError for an edit that lacks its text or the trigger word, or makes a caption too long, and for a
    regular expression that is wrong or takes too long.
    """
    _check(operation, context)
    texts = list(captions.values())
    if isinstance(operation, Replace):
        edited = _replaced(operation, texts)
    else:
        edited = (_edited(operation, text, context) for text in texts)
    changed: dict[str, str] = {}
    for (key, before), after in zip(captions.items(), edited, strict=True):
        if after == before or (after := clean_caption(after)) == before:
            continue
        if len(after) > max(LONGEST_CAPTION, len(before)):
            raise ConfigError([f"The caption of {key} would have more than {LONGEST_CAPTION:,} characters."])
        changed[key] = after
    return changed


def clean_caption(text: str) -> str:
    """On one line, without what no UTF-8 file holds and what would be read as another encoding."""
    encodable = text.encode("utf-8", errors="ignore").decode("utf-8")
    return " ".join(encodable.replace("\x00", "").replace("\ufeff", "").split())


def title(operation: Operation) -> tuple[str, str]:
    """What an edit does: fixed words, and what the person typed."""
    match operation:
        case AddTags():
            return "Add tags", operation.tags
        case RemoveTags():
            return "Remove tags", operation.tags
        case Replace():
            return "Replace", f"{operation.find} → {operation.replacement}"
        case PrependText():
            return "Prepend text", operation.text
        case AppendText():
            return "Append text", operation.text
        case SortTags():
            return "Sort tags", ""
        case DedupeTags():
            return "Remove repeated tags", ""
        case TriggerFirst():
            return "Trigger word first", ""
        case SetText():
            return "Set captions", operation.text


def _check(operation: Operation, context: Context) -> None:
    typed = [value for value in msgspec.structs.asdict(operation).values() if isinstance(value, str)]
    if any(len(text) > _LONGEST_TEXT for text in typed):
        raise ConfigError([f"The text is longer than {_LONGEST_TEXT:,} characters."])
    match operation:
        case AddTags(tags) | RemoveTags(tags) if not split_tags(tags):
            raise ConfigError(["Type at least one tag."])
        case Replace(find=find) if not (split_tags(find) if operation.within == "tag" else find):
            raise ConfigError(["Type what is to be replaced."])
        case PrependText(text) | AppendText(text) if not clean_caption(text):
            raise ConfigError(["Type the text to add."])
        case TriggerFirst() if not context.trigger_word.strip():
            raise ConfigError(["There is no trigger word: type one in the training settings."])
        case _:
            pass


def _edited(operation: Operation, caption: str, context: Context) -> str:
    match operation:
        case SetText(text):
            return text
        case PrependText(text, joined_by):
            return _joined([text.strip(), caption], joined_by)
        case AppendText(text, joined_by):
            return _joined([caption, text.strip()], joined_by)
        case _:
            tags = split_tags(caption)
            changed = _edited_tags(operation, tags, context)
            return caption if changed == tags else ", ".join(changed)


def _edited_tags(operation: Operation, tags: list[str], context: Context) -> list[str]:
    match operation:
        case AddTags():
            return _with_added(operation, tags, context)
        case RemoveTags():
            unwanted = set(map(tag_key, split_tags(operation.tags)))
            return [tag for tag in tags if tag_key(tag) not in unwanted]
        case SortTags():
            return sorted(tags, key=_order(operation, context))
        case DedupeTags():
            return _once(tags)
        case TriggerFirst():
            return _with_trigger(tags, context.trigger_word)
        case _:
            return tags


def _once(tags: Sequence[str]) -> list[str]:
    first: dict[str, str] = {}
    for tag in tags:
        first.setdefault(tag_key(tag), tag)
    return list(first.values())


def _with_added(operation: AddTags, tags: list[str], context: Context) -> list[str]:
    own = set(map(tag_key, tags))
    added = _once([tag for tag in split_tags(operation.tags) if tag_key(tag) not in own])
    place = len(tags) if operation.place == "end" else 0
    if operation.place == "after trigger":
        trigger = tag_key(context.trigger_word)
        place = next((index + 1 for index, tag in enumerate(tags) if tag_key(tag) == trigger), 0)
    return tags[:place] + added + tags[place:]


def _order(operation: SortTags, context: Context) -> Callable[[str], tuple[object, ...]]:
    trigger = tag_key(context.trigger_word)

    def key(tag: str) -> tuple[object, ...]:
        folded = tag_key(tag)
        rank = {"alphabet": 0, "frequency": -context.frequencies.get(folded, 0), "length": len(folded)}[operation.by]
        return folded != trigger, rank, folded

    return key


def _with_trigger(tags: list[str], trigger_word: str) -> list[str]:
    composed = compose_caption(
        ", ".join(tags), trigger_word=trigger_word, shuffle=False, keep_tags=0, dropout=0, random=random.Random(0)
    )
    return split_tags(composed)


# --- replacing ---


def _replaced(operation: Replace, texts: Sequence[str]) -> Iterable[str]:
    match operation.within:
        case "text":
            if len(operation.find) * sum(map(len, texts)) > _MOST_COMPARED:
                return replace_all(re.escape(operation.find), operation.replacement.replace("\\", "\\\\"), texts)
            found = re.compile(re.escape(operation.find), re.IGNORECASE)
            return (found.sub(lambda _: operation.replacement, text) for text in texts)
        case "caption expression":
            return replace_all(operation.find, operation.replacement, texts)
        case "tag expression":
            tags = list({tag for text in texts for tag in split_tags(text)})
            edited = dict(zip(tags, replace_all(operation.find, operation.replacement, tags), strict=True))
            return [_with_replaced(text, lambda tag: edited[tag]) for text in texts]
        case "tag":
            keys = set(map(tag_key, split_tags(operation.find)))
            return [
                _with_replaced(text, lambda tag: operation.replacement if tag_key(tag) in keys else tag)
                for text in texts
            ]


def _with_replaced(caption: str, replaced: Callable[[str], str]) -> str:
    """Each tag replaced; what it becomes is left out where the caption has it already."""
    tags = split_tags(caption)
    new = [replaced(tag) for tag in tags]
    if new == tags:
        return caption
    own = {tag_key(tag) for tag, other in zip(tags, new, strict=True) if tag == other}
    kept: list[str] = []
    for tag, other in zip(tags, new, strict=True):
        if tag == other:
            kept.append(tag)
            continue
        for part in split_tags(other):
            if (key := tag_key(part)) not in own:
                own.add(key)
                kept.append(part)
    return ", ".join(kept)


def _joined(parts: Sequence[str], joined_by: str) -> str:
    return joined_by.join(part for part in parts if part)
