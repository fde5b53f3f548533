"""Captions: finding and decoding them, their tags, and the text that is really trained."""

from __future__ import annotations

import random as random_module
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lora_train.core.errors import DatasetError

CAPTION_SUFFIXES = (".txt", ".caption")
"""In the order of preference, lower-case; letter case does not matter in file names."""

LARGEST_CAPTION_BYTES = 2**20

_PLAIN_ASCII = re.compile(rb"[\x20-\x7e\t\r\n\x00]*")
"""Without the control characters that are halves of Cyrillic or Greek letters in UTF-16."""

_BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def decode_text(raw: bytes) -> str:
    """Decode a text file whose encoding nobody wrote down.

    In this order: a byte order mark (UTF-8, UTF-16); UTF-16 without one, told by its NUL bytes;
    UTF-8; Shift-JIS (cp932) or GBK (gb18030), see `_shift_jis_or_gbk`; and at last cp1252, in
    which bytes that mean nothing become U+FFFD. Never raises.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if raw.startswith(mark):
            return raw.decode(encoding, errors="replace")
    utf_16 = _utf_16_without_mark(raw)
    if utf_16:
        return raw.decode(utf_16, errors="replace")
    text = _decoded(raw, "utf-8")
    if text is None:
        text = _shift_jis_or_gbk(raw)
    return raw.decode("cp1252", errors="replace") if text is None else text


def caption_text(raw: bytes) -> str:
    """The caption in a file's bytes: decoded, without NULs, its lines joined by a blank, outer blanks trimmed."""
    lines = (line.strip() for line in decode_text(raw).replace("\x00", "").splitlines())
    return " ".join(line for line in lines if line)


def captions_by_stem(files: Iterable[Path]) -> dict[str, Path]:
    """The caption file of each stem among the files of one folder; .txt wins over .caption.

    Stems are in NFC, because macOS writes the same name in another form.
    """
    found = [path for path in files if path.suffix.lower() in CAPTION_SUFFIXES]
    # The best one comes last and stays; the name only makes the order a fixed one.
    found.sort(key=lambda path: (-CAPTION_SUFFIXES.index(path.suffix.lower()), path.name))
    return {caption_stem(path): path for path in found}


def caption_stem(path: Path) -> str:
    """The name that a picture and its caption share: without suffix, in NFC."""
    return unicodedata.normalize("NFC", path.stem)


def caption_path(picture: Path) -> Path | None:
    """NAME.txt or else NAME.caption beside the picture NAME.*; None if there is neither.

    Raises DatasetError if the folder can't be listed.
    """
    try:
        return captions_by_stem(picture.parent.iterdir()).get(caption_stem(picture))
    except OSError as error:
        raise DatasetError(f"{picture.parent} can't be listed ({error.strerror}).") from error


def read_caption(picture: Path) -> str:
    """The caption of a picture on one line; "" if it has none.

    Raises DatasetError if there is a caption file that can't be read.
    """
    path = caption_path(picture)
    return "" if path is None else caption_text(read_caption_bytes(path))


def read_caption_bytes(path: Path) -> bytes:
    """The caption file as it is. Raises DatasetError naming it and the reason."""
    try:
        if path.stat().st_size > LARGEST_CAPTION_BYTES:
            raise DatasetError(f"{path} is no caption: the limit is {LARGEST_CAPTION_BYTES / 2**20:g} MB.")
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"The caption {path} can't be read ({error.strerror}).") from error


def split_tags(caption: str) -> list[str]:
    """The parts between ASCII commas, trimmed, without empty ones.

    The full-width comma and the ideographic one do not split: they belong to sentences, and
    kohya's metadata and other programs count tags by the ASCII comma alone.
    """
    return [tag for part in caption.split(",") if (tag := part.strip())]


def tag_frequency(captions: Iterable[str]) -> dict[str, int]:
    """How often each tag occurs, lower-cased, as in kohya's `ss_tag_frequency`; repeats of a
    picture do not count. In the order of first occurrence.
    """
    return dict(Counter(tag.lower() for caption in captions for tag in split_tags(caption)))


def common_tag(captions: Sequence[str]) -> str:
    """The first tag that every caption has: what calls the LoRA up when no trigger word was set. "" for none."""
    tags = [split_tags(caption) for caption in captions]
    return next((tag for tag in tags[0] if all(tag in own for own in tags)), "") if tags else ""


def has_word(caption: str, word: str) -> bool:
    """Whether the word (or words) is in the caption, and not inside another one; letter case does not matter."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", caption, re.IGNORECASE) is not None


def with_trigger_word(caption: str, trigger_word: str) -> str:
    """The caption as it is trained, where nothing is shuffled or dropped (see `compose_caption`)."""
    return ", ".join(part for part in trigger_and_rest(caption, trigger_word.strip()) if part)


def compose_caption(
    caption: str,
    *,
    trigger_word: str,
    shuffle: bool,
    keep_tags: int,
    dropout: float,
    random: random_module.Random,
) -> str:
    """The caption that is trained this time.

    With probability `dropout` (0-1) it is empty, trigger word included. Otherwise the trigger word
    stands first: a tag equal to it moves there, and where it occurs inside a tag as a word of
    its own ("photo of sks dog") nothing is added. With `shuffle`, the trigger word and the first
    `keep_tags` tags after it stay, and the rest are put in random order.

    Draws from `random` in a fixed order: one number for dropout, always; then, unless dropped,
    the shuffle. Nothing else is random.
    """
    if random.random() < dropout:
        return ""
    if not shuffle:
        return with_trigger_word(caption, trigger_word)
    trigger, rest = trigger_and_rest(caption, trigger_word.strip())
    tags = split_tags(rest)
    moving = tags[keep_tags:]
    random.shuffle(moving)
    rest = ", ".join(tags[:keep_tags] + moving)
    return ", ".join(part for part in (trigger, rest) if part)


def trigger_and_rest(caption: str, trigger_word: str) -> tuple[str, str]:
    """What stands first, and the caption without it; letter case does not matter."""
    if not trigger_word:
        return "", caption
    tags = split_tags(caption)
    others = [tag for tag in tags if tag.casefold() != trigger_word.casefold()]
    if len(others) < len(tags):
        return trigger_word, ", ".join(others)
    return ("" if has_word(caption, trigger_word) else trigger_word), caption


def _utf_16_without_mark(raw: bytes) -> str | None:
    """The byte order, if at least one character in sixteen has a NUL half.

    In UTF-16 all ASCII characters have one, so blanks and commas are enough to tell; in the other
    encodings a NUL is an accident, as in ASCII text that has only few of them.
    """
    is_ascii_with_accidents = _PLAIN_ASCII.fullmatch(raw) is not None and raw.count(0) * 4 < len(raw)
    if len(raw) % 2 or not raw or is_ascii_with_accidents:
        return None
    high_nul, low_nul = raw[0::2].count(0), raw[1::2].count(0)
    if max(high_nul, low_nul) * 16 < len(raw) // 2:
        return None
    return "utf-16-be" if high_nul > low_nul else "utf-16-le"


def _decoded(raw: bytes, encoding: str) -> str | None:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        return None


def _shift_jis_or_gbk(raw: bytes) -> str | None:
    """The more plausible of the two readings; None if the bytes are neither.

    Most Chinese text also decodes as Shift-JIS and the other way round, but to text nobody
    writes: GBK's common characters turn into half-width katakana and private-use characters,
    Shift-JIS turns into rare hanzi outside GB 2312, the standard set of 6763 common ones. So
    each reading is given the share of its non-ASCII characters that are ordinary in its
    language, and the larger share wins. Only text in nothing but half-width katakana can lose
    against the truth, and then only if all its runs have an even length.
    """
    japanese, chinese = _decoded(raw, "cp932"), _decoded(raw, "gb18030")
    if japanese is None or chinese is None:
        return chinese if japanese is None else japanese
    japanese_share = _share(_is_ordinary_japanese(character) for character in japanese)
    chinese_share = _share(_is_ordinary_chinese(character) for character in chinese)
    return japanese if japanese_share > chinese_share else chinese


def _share(verdicts: Iterable[bool | None]) -> float:
    """The share of True among the verdicts, not counting None (ASCII says nothing)."""
    counted = [verdict for verdict in verdicts if verdict is not None]
    return sum(counted) / len(counted)


def _is_ordinary_japanese(character: str) -> bool | None:
    if character.isascii():
        return None
    half_width_katakana = "\uff61" <= character <= "\uff9f"
    return not half_width_katakana and unicodedata.category(character) not in ("Co", "Cc")


def _is_ordinary_chinese(character: str) -> bool | None:
    if character.isascii():
        return None
    try:
        character.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return True
