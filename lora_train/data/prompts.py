"""Prompts as Automatic1111 and Forge read them: attention, BREAK, and tags of networks; without torch.

(word)       1.1 times the attention; ((word)) 1.21 times
(word:1.3)   1.3 times
[word]       1 / 1.1 times
\\( \\) \\[ \\]  the sign itself
a BREAK b    b begins a chunk of its own
<lora:x:1>   not for the text encoder
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from lora_train.data.tokens import chunk_borders

_STEP = 1.1
"""What a bracket without a number multiplies or divides by."""
_WEIGHT = r":\s*(?P<weight>[-+]?[.\d]+)\s*\)"
_PIECE = re.compile(rf"\\(?P<escaped>[()\[\]\\]?)|{_WEIGHT}|[()\[\]:]|[^\\()\[\]:]+")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_TAG = re.compile(r"<\w+:[^>]+>")
_UNREAD = re.compile(r"\[[^\[\]]*:\s*[\d.]+\s*\]|\[[^\[\]]*\|[^\[\]]*\]|\bAND\b")


class Part(NamedTuple):
    """A stretch of a prompt whose tokens have one weight."""

    text: str
    weight: float
    is_break: bool = False
    """Nothing but the end of a chunk."""


class WeightedChunk(NamedTuple):
    """At most 75 token ids, and the weight of each."""

    ids: list[int]
    weights: list[float]


def without_tags(prompt: str) -> str:
    """The prompt without `<lora:name:weight>` and its like, which name networks and are no text."""
    return _TAG.sub("", prompt)


def unread_syntax(prompt: str) -> str:
    """The first piece of a prompt that only the hosts' own samplers understand: `[from:to:when]`, `[a|b]` or AND; ""
    where there is none."""
    found = _UNREAD.search(prompt.replace("\\[", "").replace("\\]", ""))
    return found.group() if found else ""


def read_attention(prompt: str) -> list[Part]:
    """A prompt in parts of one weight. Brackets may be nested, which multiplies; one that is never closed goes on to
    the end, one that was never opened is text.

    As in the hosts, BREAK inside of brackets is a word: they would multiply it.
    """
    parts = _Parts()
    for match in _PIECE.finditer(prompt):
        piece, weight = match.group(), _number(match["weight"])
        if match["escaped"] is not None:
            parts.add(match["escaped"])
        elif piece in parts.open:
            parts.open[piece].append(len(parts.found))
        elif piece == ")" and parts.open["("]:
            parts.multiply_from(parts.open["("].pop(), _STEP)
        elif piece == "]" and parts.open["["]:
            parts.multiply_from(parts.open["["].pop(), 1 / _STEP)
        elif weight is not None and parts.open["("]:
            parts.multiply_from(parts.open["("].pop(), weight)
        else:
            parts.add_words(piece)
    for bracket, factor in (("(", _STEP), ("[", 1 / _STEP)):
        for start in parts.open[bracket]:
            parts.multiply_from(start, factor)
    return parts.joined()


class _Parts:
    """What was found so far. A BREAK is a word of the weight -1 until its brackets are known."""

    def __init__(self) -> None:
        self.found: list[tuple[str, float]] = []
        self.open: dict[str, list[int]] = {"(": [], "[": []}
        """For each bracket that is still open, where what it holds begins."""

    def add(self, text: str) -> None:
        self.found.append((text, 1.0))

    def add_words(self, text: str) -> None:
        first, *others = _BREAK.split(text)
        self.add(first)
        for other in others:
            self.found.append(("BREAK", -1.0))
            self.add(other)

    def multiply_from(self, start: int, factor: float) -> None:
        self.found[start:] = [(text, weight * factor) for text, weight in self.found[start:]]

    def joined(self) -> list[Part]:
        """Neighbours of the same weight are one text: tokens may reach over an escaped sign."""
        joined: list[Part] = []
        for text, weight in self.found:
            if joined and joined[-1].weight == weight:
                joined[-1] = Part(joined[-1].text + text, weight)
            else:
                joined.append(Part(text, weight))
        return [part._replace(is_break=part[:2] == ("BREAK", -1.0)) for part in joined] or [Part("", 1.0)]


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:  # "1.2.3"
        return None


def weighted_chunks(parts: Sequence[Part], ids: Sequence[Sequence[int]], comma: int) -> list[WeightedChunk]:
    """The chunks of a prompt whose parts have these token ids; always at least one.

    A BREAK ends a chunk, even an empty one; else chunks end as those of captions do (`tokens.chunk_borders`).
    """
    chunks: list[WeightedChunk] = []
    open_ids: list[int] = []
    weights: list[float] = []
    for part, own in zip(parts, ids, strict=True):
        if part.is_break:
            chunks += _cut(open_ids, weights, comma)
            open_ids, weights = [], []
        else:
            open_ids += own
            weights += [part.weight] * len(own)
    return [*chunks, *_cut(open_ids, weights, comma)] if open_ids or not chunks else chunks


def _cut(ids: list[int], weights: list[float], comma: int) -> list[WeightedChunk]:
    return [WeightedChunk(ids[start:end], weights[start:end]) for start, end in pairwise(chunk_borders(ids, comma))]
