"""Runs regular expressions over texts. A program of its own, with nothing but the standard library: see `expressions`.

In: {"expressions": [...], "replacement": null or text, "texts": [...], "longest": number} as JSON.
Out: {"found": [[whether it occurs, for each text] for each expression]}, or {"texts": [...]} of the first expression
with a replacement, or {"problem", "position", "of"}, or {"too_long": true}.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """What the caller asked for, or what is wrong with it."""
    compiled: list[re.Pattern[str]] = []
    for expression in asked["expressions"]:
        try:
            compiled.append(re.compile(expression, re.IGNORECASE))
        except (re.error, OverflowError, RecursionError) as error:
            return _problem(error, expression)
    texts: list[str] = asked["texts"]
    replacement: str | None = asked["replacement"]
    if replacement is None:
        return {"found": [[one.search(text) is not None for text in texts] for one in compiled]}
    try:
        compiled[0].sub(replacement, "")  # a wrong one is told even where nothing is found
    except (re.error, IndexError) as error:
        return _problem(error, replacement)
    try:
        return {
            "texts": [_replaced(compiled[0], replacement, text, max(asked["longest"], len(text))) for text in texts]
        }
    except OverflowError:
        return {"too_long": True}


def _replaced(expression: re.Pattern[str], replacement: str, text: str, longest: int) -> str:
    """Counted as it grows: of a short text and a short replacement all memory can be filled. Raises OverflowError."""
    written = 0

    def replace(found: re.Match[str]) -> str:
        nonlocal written
        new = found.expand(replacement)
        written += len(new)
        if written > longest:
            raise OverflowError
        return new

    edited = expression.sub(replace, text)
    if len(edited) > longest:
        raise OverflowError
    return edited


def _problem(error: Exception, of: str) -> dict[str, Any]:
    return {"problem": getattr(error, "msg", str(error)), "position": getattr(error, "pos", None), "of": of}


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
