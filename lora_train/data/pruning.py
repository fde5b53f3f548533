"""Tags that training leaves out, because nearly every picture has them: the word that calls the LoRA up means them.

Caption files stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lora_train.data.caption_tags import tag_key
from lora_train.data.captions import common_tag, has_word, split_tags, trigger_and_rest
from lora_train.data.dataset import Picture


def trained_captions(
    pictures: Sequence[Picture], *, prune_percent: int, trigger_word: str, keep_tags: int
) -> list[str]:
    """The caption of each picture without the tags that more than `prune_percent` of the training pictures have.

    The word that calls the LoRA up always stays: the trigger word, also inside a tag, or else the first tag that every
    caption has. Where there is neither, nothing would take the meaning of other tags, so all stay. So do the first
    `keep_tags` tags of each caption (behind the trigger word), and every caption of a regularisation picture.
    Spellings of a tag count as one (see `tag_key`). With 0 % nothing is left out. Pictures that are not shown (no
    repeats) don't count.
    """
    trigger_word = trigger_word.strip()
    captions = [picture.caption for picture in pictures]
    training = [picture.caption for picture in pictures if picture.repeats and not picture.is_regularisation]
    calling = trigger_word or common_tag(training)
    if not prune_percent or not calling:
        return captions
    common = _common_keys(training, prune_percent)
    return [
        picture.caption
        if picture.is_regularisation
        else _without(picture.caption, common, calling, _first_tags(picture.caption, trigger_word, keep_tags))
        for picture in pictures
    ]


def _common_keys(captions: Sequence[str], percent: int) -> set[str]:
    counts = Counter(key for caption in captions for key in {tag_key(tag) for tag in split_tags(caption)})
    return {key for key, count in counts.items() if 100 * count > percent * len(captions)}


def _first_tags(caption: str, trigger_word: str, count: int) -> set[str]:
    """Keys of the tags that don't change places."""
    return {tag_key(tag) for tag in split_tags(trigger_and_rest(caption, trigger_word)[1])[:count]}


def _without(caption: str, common: set[str], calling: str, first: set[str]) -> str:
    """The caption itself, letter for letter, where nothing of it is left out."""
    tags = split_tags(caption)
    kept = [tag for tag in tags if tag_key(tag) not in common - first or has_word(tag, calling)]
    return caption if len(kept) == len(tags) else ", ".join(kept)
