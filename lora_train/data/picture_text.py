"""The prompt that a WebUI wrote into a picture it made, as a caption.

The text ("infotext") is prompt lines, then `Negative prompt: ...` lines, then `Steps: 20, Sampler: Euler a, ...`;
further lines of extensions may follow. In a PNG it is the text `parameters`, in a JPEG, WebP or AVIF the EXIF user
comment.
"""

from __future__ import annotations

import re
from pathlib import Path

from lora_train.core.errors import DatasetError
from lora_train.data.captions import decode_text, split_tags
from lora_train.data.images import texts_in_picture

_LONGEST_PROMPT = 20_000
"""Characters; a longer text is no prompt that a person wrote."""
_SETTINGS_LINE = re.compile(r"Steps: \d+,")
_NEGATIVE = "Negative prompt:"
_COMMENT_CODE_BYTES = 8
"""EXIF 2.32, table "Character codes": the user comment begins with the name of its encoding."""

_EXTRA_NETWORK = re.compile(r"<\w+:[^<>]*>")
_BETWEEN_PARTS = re.compile(r"\b(?:BREAK|ADDCOMM|ADDBASE|ADDCOL|ADDROW)\b")
"""Automatic1111's own, and those of the Regional Prompter."""
_AND = re.compile(r"\bAND\b")
_NUMBER = r"\s*[-+]?(?:\d+\.?\d*|\.\d+)\s*"
_WEIGHT_AT_END = re.compile(rf":({_NUMBER})$")
_IS_NUMBER = re.compile(_NUMBER)
_ESCAPED = {f"\\{char}": chr(0xE000 + number) for number, char in enumerate("()[]\\:|")}
"""Stand-ins (private use) for signs that are meant as themselves."""
_CLOSING = {"(": ")", "[": "]"}


def prompt_in(path: Path) -> str:
    """The positive prompt in a picture's header as a caption; "" where no WebUI wrote one, or nothing can be read."""
    try:
        parameters, comment = texts_in_picture(path)
    except DatasetError:
        return ""
    return caption_of_infotext(_repaired(parameters)) or caption_of_infotext(
        decode_text(comment[_COMMENT_CODE_BYTES:]).replace("\x00", "")
    )


def caption_of_infotext(infotext: str) -> str:
    """What stands in a WebUI's text before the negative prompt, as tags or sentences without prompt syntax.

    "" for a text without the line of settings: cameras and other programs write comments too.
    """
    lines = infotext.splitlines()
    last = next((number for number in reversed(range(len(lines))) if _SETTINGS_LINE.match(lines[number].strip())), None)
    if last is None:
        return ""
    end = next((number for number in range(last) if lines[number].strip().startswith(_NEGATIVE)), last)
    return caption_of_prompt("\n".join(lines[:end]))


def caption_of_prompt(prompt: str) -> str:
    """A prompt without what only the sampler understands, on one line.

    `<lora:x:1>` and its like go; `(word:1.2)`, `((word))` and `[word]` become the word; `[from:to:when]` what it
    becomes, or what it was before it goes; `[a|b]` both; BREAK and AND become commas, and a part that AND gives a
    negative weight goes. `\\(` and its like are the sign itself.
    """
    text = _EXTRA_NETWORK.sub("", prompt[:_LONGEST_PROMPT].replace("\x00", ""))
    for escaped, stand_in in _ESCAPED.items():
        text = text.replace(escaped, stand_in)
    parts = _AND.split(_BETWEEN_PARTS.sub(",", text))
    if len(parts) > 1:
        parts = [_without_weight(part) for part in parts]
    text = _without_brackets(",".join(parts))
    for escaped, stand_in in _ESCAPED.items():
        text = text.replace(stand_in, escaped[1])
    return ", ".join(split_tags(" ".join(text.split())))


def _without_weight(part: str) -> str:
    """A part between two AND; "" for one that the picture was led away from."""
    part = part.strip()
    if (weight := _WEIGHT_AT_END.search(part)) is None:
        return part
    return "" if float(weight[1]) < 0 else part[: weight.start()]


def _without_brackets(text: str) -> str:
    """Every bracket replaced by what it means. One that is never closed is dropped, one never opened stays (`:)`)."""
    open_brackets: list[str] = []
    levels: list[str] = [""]
    for char in text:
        if char in _CLOSING:
            open_brackets.append(char)
            levels.append("")
        elif open_brackets and char == _CLOSING[open_brackets[-1]]:
            content = levels.pop()
            levels[-1] += _in_round(content) if open_brackets.pop() == "(" else _in_square(content)
        else:
            levels[-1] += char
    return "".join(levels)


def _in_round(content: str) -> str:
    """`word:1.2` -> word."""
    return _WEIGHT_AT_END.sub("", content)


def _in_square(content: str) -> str:
    """`a|b` -> both; `from:to:when` and `to:when` -> to, `from::when` -> from; anything else is only weaker."""
    if "|" in content:
        return " ".join(part.strip() for part in content.split("|") if part.strip())
    *words, when = content.split(":")
    if words and len(words) <= 2 and _IS_NUMBER.fullmatch(when):
        return words[-1] if words[-1].strip() else words[0]
    return content


def _repaired(text: str) -> str:
    """PNG's plain text is Latin-1 by its standard; some programs write UTF-8 all the same."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text
