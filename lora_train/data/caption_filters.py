"""Which captions a person wants to see, written on one line.

    1girl, long hair     captions with these tags, whole and in any letter case: all of them, or one of them ("or")
    -solo                none with this tag, whatever the mode
    "-_-"                a tag as it stands, with commas or signs that mean something here
    *blue sky*           captions in which this text occurs anywhere
    /blue|gr[ae]y/       the same with a regular expression
    ""                   captions without any text; -"" those with some

Every term may have a minus in front. No terms: all captions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from lora_train.core.errors import ConfigError, shown
from lora_train.data.caption_tags import tag_key
from lora_train.data.captions import split_tags
from lora_train.data.expressions import search_all

FilterMode = Literal["and", "or"]

_TERM = re.compile(r'\s*(-?)\s*(?:"([^"]*)"|/((?:\\.|[^/\\])*)/|([^,]*))\s*(?:,|\Z)', re.DOTALL)


class Term(msgspec.Struct, frozen=True):
    """One condition on a caption."""

    kind: Literal["tag", "text", "expression", "empty"]
    text: str = ""
    is_wanted: bool = True


class Filter(msgspec.Struct, frozen=True):
    """Conditions on a caption; `mode` says whether all or one of the wanted ones must hold."""

    terms: tuple[Term, ...] = ()
    mode: FilterMode = "and"


def parse_filter(text: str, mode: FilterMode = "and") -> Filter:
    """What a person typed. Raises ConfigError where a quotation mark or a slash is not closed."""
    terms: list[Term] = []
    position = 0
    while position < len(text):
        found = _TERM.match(text, position)
        assert found is not None, "the last alternative takes anything"
        position = found.end()
        minus, quoted, expression, bare = found.groups()
        term = _term(quoted, expression, (bare or "").strip())
        if term is not None:
            terms.append(msgspec.structs.replace(term, is_wanted=not minus))
    return Filter(tuple(terms), mode)


def _term(quoted: str | None, expression: str | None, bare: str) -> Term | None:
    if quoted is not None:
        return Term("tag", quoted) if quoted.strip() else Term("empty")
    if expression is not None:
        return Term("expression", expression)
    if bare[:1] in ('"', "/") and bare:
        raise ConfigError([f"The filter can't be read at {shown(bare)}: what begins with {bare[0]} must end with it."])
    if len(bare) > 2 and bare.startswith("*") and bare.endswith("*"):
        return Term("text", bare[1:-1])
    return Term("tag", bare) if bare else None


def matching(captions: Mapping[str, str], chosen: Filter) -> list[str]:
    """The keys of the captions that the filter lets through, in their order.

    Raises ConfigError for a regular expression that is wrong or takes too long.
    """
    texts = list(captions.values())
    wanted = _verdicts([term for term in chosen.terms if term.is_wanted], texts)
    unwanted = _verdicts([term for term in chosen.terms if not term.is_wanted], texts)
    enough = all if chosen.mode == "and" else any
    return [
        key
        for index, key in enumerate(captions)
        if (not wanted or enough(verdict[index] for verdict in wanted))
        and not any(verdict[index] for verdict in unwanted)
    ]


def matches(caption: str, chosen: Filter) -> bool:
    """`matching` for one caption."""
    return bool(matching({"": caption}, chosen))


def _verdicts(terms: Sequence[Term], texts: Sequence[str]) -> list[list[bool]]:
    """For each term, whether it holds for each text."""
    expressions = [term.text for term in terms if term.kind == "expression"]
    verdicts = search_all(expressions, texts) if expressions else []
    asks_for_tags = any(term.kind == "tag" for term in terms)
    keys = [{tag_key(tag) for tag in split_tags(text)} for text in texts] if asks_for_tags else []
    for term in terms:
        key = tag_key(term.text)
        if term.kind == "tag":
            verdicts.append([key in own for own in keys])
        elif term.kind == "text":
            verdicts.append([key in tag_key(text) for text in texts])
        elif term.kind == "empty":
            verdicts.append([not text.strip() for text in texts])
    return verdicts
