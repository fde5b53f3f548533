"""What the health check finds in captions. Thresholds stand here, with reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lora_train.core.config import TrainSettings
from lora_train.core.health import Counted, Finding, Shown
from lora_train.data.captions import common_tag, has_word, split_tags, tag_frequency
from lora_train.data.dataset import Picture
from lora_train.data.pruning import trained_captions

COMMON_SHARE = 0.8
"""A tag in more captions than this is learned as part of the subject: it says what nearly all pictures show."""
LEAST_CAPTIONS = 5
"""With fewer, every tag is common or rare."""
LEAST_TAGS = 3
"""A caption with fewer parts is a sentence, whose parts are no tags that could be common or rare."""


def caption_findings(
    pictures: Sequence[Picture], concept: str, settings: TrainSettings, token_counts: Mapping[str, int]
) -> list[Finding]:
    """Everything that is found in the captions of training pictures.

    `concept` is the caption of a picture that has none, and whose folder has no name either. `token_counts` has the
    tokens of each file's caption, as far as they were counted.
    """
    if not pictures:
        return []
    trained = {picture.path: picture.caption or picture.concept or concept for picture in pictures}
    kept = trained_captions(
        pictures,
        prune_percent=settings.prune_common_tags,
        trigger_word=settings.trigger_word,
        keep_tags=settings.keep_tags,
    )
    remaining = [
        caption if picture.caption else trained[picture.path] for picture, caption in zip(pictures, kept, strict=True)
    ]
    calling = _calling_word(trained, settings.trigger_word)
    found = (
        _no_caption(pictures),
        _too_long(pictures, token_counts, settings.max_tokens),
        _all_the_same(pictures),
        calling,
        _left_out(pictures, kept, settings.prune_common_tags),
        *_tags(remaining, {count.name.lower() for count in calling.counts}),
    )
    return [finding for finding in found if finding is not None]


def _no_caption(pictures: Sequence[Picture]) -> Finding | None:
    without = tuple(Shown(picture.path) for picture in pictures if not picture.caption)
    if not without:
        return None
    return Finding(
        kind="no_caption",
        level="warning",
        title="Some pictures have no caption: they are called by the name of their folder.",
        remedy="Write what they show, or let a captioner do it.",
        pictures=without,
    )


def _too_long(pictures: Sequence[Picture], token_counts: Mapping[str, int], max_tokens: int) -> Finding | None:
    counts = {picture.path: token_counts.get(picture.path, 0) for picture in pictures}
    long = tuple(Shown(file, count) for file, count in counts.items() if count > max_tokens)
    if not long:
        return None
    return Finding(
        kind="long_captions",
        level="warning",
        title="Some captions are longer than the token limit: their ends are not trained.",
        remedy="Shorten them, or choose more tokens under Train.",
        limit=max_tokens,
        unit="tokens",
        pictures=long,
    )


def _all_the_same(pictures: Sequence[Picture]) -> Finding | None:
    captions = {picture.caption for picture in pictures}
    if len(pictures) == 1 or len(captions) > 1 or captions == {""}:
        return None
    return Finding(
        kind="same_captions",
        level="warning",
        title="All captions are the same.",
        remedy="Write what differs between the pictures (clothes, place, view): what has words stays changeable.",
        counts=(Counted(captions.pop(), len(pictures)),),
    )


def _calling_word(trained: Mapping[str, str], trigger_word: str) -> Finding:
    """What calls the LoRA up: the trigger word, or else the first tag that every caption has."""
    trigger_word = trigger_word.strip()
    if trigger_word:
        lacking = tuple(Shown(file) for file, caption in trained.items() if not has_word(caption, trigger_word))
        return Finding(
            kind="trigger_word",
            level="info",
            title="The trigger word calls the LoRA up."
            if not lacking
            else "The trigger word calls the LoRA up. Training puts it first into the captions that lack it.",
            pictures=lacking,
            counts=(Counted(trigger_word, len(trained) - len(lacking)),),
        )
    common = common_tag(list(trained.values()))
    if common:
        return Finding(
            kind="common_tag",
            level="info",
            title="A tag that every caption has calls the LoRA up.",
            counts=(Counted(common, len(trained)),),
        )
    return Finding(
        kind="no_trigger",
        level="warning",
        title="No word is in every caption, so no word calls the LoRA up for sure.",
        remedy="Set a trigger word under Train: it is then put first into every caption.",
    )


def _left_out(pictures: Sequence[Picture], kept: Sequence[str], percent: int) -> Finding | None:
    """The tags that are in captions and not in what is `kept` of them."""
    gone = [
        ", ".join(tag for tag in split_tags(picture.caption) if tag not in split_tags(caption))
        for picture, caption in zip(pictures, kept, strict=True)
    ]
    counts = [Counted(tag, count) for tag, count in tag_frequency(gone).items()]
    if not counts:
        return None
    return Finding(
        kind="left_out_tags",
        level="info",
        title="Training leaves these tags out, because nearly all captions have them.",
        remedy="The word that calls the LoRA up takes their meaning. Leave out common tags (%) at 0 keeps them.",
        limit=percent,
        unit="%",
        counts=tuple(sorted(counts, key=lambda tag: -tag.count)),
    )


def _tags(captions: Sequence[str], calling: set[str]) -> tuple[Finding | None, Finding | None]:
    """Tags of nearly all captions, and of one; those that call the LoRA up are meant to be in all."""
    lists = [caption for caption in captions if len(split_tags(caption)) >= LEAST_TAGS]
    if len(lists) < LEAST_CAPTIONS:
        return None, None
    # A tag that a caption has twice is in one caption.
    frequency = tag_frequency(", ".join(dict.fromkeys(split_tags(caption.lower()))) for caption in lists)
    common = [Counted(tag, count) for tag, count in frequency.items() if count > COMMON_SHARE * len(lists)]
    common = sorted((tag for tag in common if tag.name not in calling), key=lambda tag: -tag.count)
    rare = [Counted(tag, count) for tag, count in frequency.items() if count == 1 and tag not in calling]
    often = Finding(
        kind="common_tags",
        level="info",
        title="Nearly all captions have these tags. Are they part of the subject?",
        remedy="Prune those that always belong to it; keep those that you want to change in prompts.",
        limit=COMMON_SHARE * 100,
        unit="%",
        counts=tuple(common),
    )
    once = Finding(
        kind="rare_tags",
        level="info",
        title="These tags are in one caption only: they are hardly learned.",
        remedy="Correct those that are misspelt or wrong; the others do no harm.",
        counts=tuple(rare),
    )
    return often if common else None, once if rare else None
