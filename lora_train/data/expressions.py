"""A person's regular expressions over captions, in a process of its own that has a time limit.

An expression like (a+)+b can take years, nothing can stop Python within one, and all threads of the page's process
would wait for it. Letter case does not matter, except within (?-i:...).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_train.core.errors import ConfigError

LONGEST_CAPTION = 20_000
"""Characters that an edit may make a caption grow to; 225 tokens are about 1,000."""
_LONGEST_EXPRESSION = 1_000
_LIMIT_S = 2.4
"""A filter and an edit, one after the other, stay below five seconds. Ordinary ones take 0.1 s for 2,000 captions."""

_CHILD = Path(__file__).with_name("expressions_child.py")
_NO_WINDOW = subprocess.CREATE_NO_WINDOW if sys.platform == "win32" else 0


def search_all(expressions: Sequence[str], texts: Sequence[str]) -> list[list[bool]]:
    """For each expression, in which of the texts it occurs. Raises ConfigError for a wrong or an endless one."""
    return _ask(expressions, None, texts)["found"]


def replace_all(expression: str, replacement: str, texts: Sequence[str]) -> list[str]:
    r"""The texts with every occurrence replaced; `replacement` may have \1 and \g<name>.

    Raises ConfigError for a wrong or an endless expression, a wrong replacement, or a caption that grows too long.
    """
    return _ask([expression], replacement, texts)["texts"]


def _ask(expressions: Sequence[str], replacement: str | None, texts: Sequence[str]) -> dict[str, Any]:
    for text in (*expressions, replacement or ""):
        if len(text) > _LONGEST_EXPRESSION:
            raise ConfigError(
                [f"A regular expression may have {_LONGEST_EXPRESSION} characters; this one has {len(text)}."]
            )
    asked = {
        "expressions": list(expressions),
        "replacement": replacement,
        "texts": list(texts),
        "longest": LONGEST_CAPTION,
    }
    answer = _run(json.dumps(asked), " ".join(expressions))
    if "problem" in answer:
        place = "" if answer["position"] is None else f" at character {answer['position'] + 1}"
        raise ConfigError([f"The regular expression {answer['of']} is wrong{place}: {answer['problem']}."])
    if "too_long" in answer:
        raise ConfigError([f"The replacement makes a caption longer than {LONGEST_CAPTION:,} characters."])
    return answer


def _run(asked: str, shown: str) -> dict[str, Any]:
    """Isolated (-I) and without site packages (-S), the interpreter starts in a few hundredths of a second."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(_CHILD)],
            input=asked,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
            timeout=_LIMIT_S,
            check=True,
            creationflags=_NO_WINDOW,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            [f"The regular expression {shown} takes too long: write it without a repeat within a repeat, like (a+)+."]
        ) from None
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError([f"The regular expression {shown} could not be run: {error}."]) from None
    return json.loads(done.stdout)
