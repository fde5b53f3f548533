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
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from lora_train.data.tokens import chunk_borders

_STEP = 1.1
"""What a bracket without a number multiplies or divides by."""
_WEIGHT = r":\s*(?P<weight>[-+]?[.\d]+)\s*\)"
_PIECE = re.compile(rf"\\(?P<escaped>[()\[\]\\]?)|{_WEIGHT}|[()\[\]:]|[^\\()\[\]:]+")
_BREAK = re.compile(r"(?<!\s)\s*\bBREAK\b\s*")
_TAG = re.compile(r"<\w+:[^>]+>")
_UNREAD = re.compile(r"\[[^\[\]]*:\s*[\d.]+\s*\]|\[[^\[\]|]*\|[^\[\]]*\]|\bAND\b")


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
            parts.begin(piece)
        elif piece == ")" and parts.open["("]:
            parts.end("(")
        elif piece == "]" and parts.open["["]:
            parts.end("[")
        elif weight is not None and parts.open["("]:
            parts.end("(", weight)
        else:
            parts.add_words(piece)
    return parts.joined()


class _Bracket:
    """A bracket and what it multiplies by, which only its end tells."""

    def __init__(self, sign: str) -> None:
        self.sign = sign
        self.factor = _STEP if sign == "(" else 1 / _STEP


class _End(NamedTuple):
    """Of the last bracket of this sign that is still open."""

    sign: str


class _Parts:
    """What was found so far. A BREAK is a word of the weight -1 until its brackets are known."""

    def __init__(self) -> None:
        self.found: list[tuple[str, float] | _Bracket | _End] = []
        self.open: dict[str, list[_Bracket]] = {"(": [], "[": []}

    def add(self, text: str) -> None:
        self.found.append((text, 1.0))

    def add_words(self, text: str) -> None:
        first, *others = _BREAK.split(text)
        self.add(first)
        for other in others:
            self.found.append(("BREAK", -1.0))
            self.add(other)

    def begin(self, sign: str) -> None:
        bracket = _Bracket(sign)
        self.open[sign].append(bracket)
        self.found.append(bracket)

    def end(self, sign: str, factor: float | None = None) -> None:
        bracket = self.open[sign].pop()
        bracket.factor = bracket.factor if factor is None else factor
        self.found.append(_End(sign))

    def weighted(self) -> Iterator[tuple[str, float]]:
        """The texts with their weights. Brackets of one sign nest, so that each has a stack of products; those of
        both may overlap."""
        products = {"(": [1.0], "[": [1.0]}
        for each in self.found:
            if isinstance(each, _Bracket):
                products[each.sign].append(products[each.sign][-1] * each.factor)
            elif isinstance(each, _End):
                products[each.sign].pop()
            else:
                text, weight = each
                yield text, weight * products["("][-1] * products["["][-1]

    def joined(self) -> list[Part]:
        """Neighbours of the same weight are one text: tokens may reach over an escaped sign."""
        groups = groupby(self.weighted(), key=lambda found: found[1])
        joined = [Part("".join(text for text, _ in group), weight) for weight, group in groups]
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
