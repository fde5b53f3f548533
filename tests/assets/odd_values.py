"""Values that nobody expects, drawn fast: hypothesis takes ten times as long, and finds a shorter one."""

from __future__ import annotations

import json
from random import Random
from typing import Any

ODD_NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, 255, 256, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400, -(10**400)),
    *(0.0, -0.0, 0.5, -1.5, 1e-300, 1e300, 1e308, float("nan"), float("inf"), float("-inf"), True, False),
)
ODD_TEXTS = (
    *("", " ", "a", "0", "-1", "1.5", "1e999", "nan", "inf", "true", "null", "None", "9" * 5_000, "１２", "٣", "²"),
    *("x" * 3_000, "\x00", "a\x00b", "\n", "\r\n", "\u2028", "\ufeff", "\ufffe", "\u202egnp.exe", "\u200b", "e\u0301"),
    *(
        "\ud800",
        "\udfff\ud800",
        "日本語",
        "🙂" * 40,
        "../../etc/passwd",
        "..\\..\\x",
        "C:\\x",
        "/abs",
        "//srv/s",
        "~/x",
    ),
    *(
        "CON",
        "con.txt",
        "a:b",
        "<script>",
        "'\"`",
        "${x}",
        "%00",
        "%2e%2e",
        "{0}",
        "%s",
        "\\",
        "a,b,,c",
        "[",
        "((((",
        "|",
    ),
)


def odd_text(random: Random) -> str:
    if random.random() < 0.6:
        return random.choice(ODD_TEXTS)
    return "".join(odd_character(random) for _ in range(random.randrange(1, 30)))


def odd_character(random: Random) -> str:
    """Any code point, those that mean something to somebody more often."""
    match random.randrange(5):
        case 0:
            return chr(random.randrange(0x80))
        case 1:
            return random.choice(" .,:;/\\|<>()[]{}'\"`*?!-_=+#%&~^\t\n\x00\x7f\x85\xa0\u2028\u202e\u200d\ufe0f\u0301")
        case 2:
            return chr(random.randrange(0xD7FF))
        case 3:
            return chr(random.randrange(0x110000))
        case _:
            return random.choice("abcXYZ019éßİıſﬁΐ日本ｱ")


def odd_value(random: Random, depth: int = 3) -> Any:
    """Anything that JSON in Python can say."""
    match random.randrange(8 if depth else 5):
        case 0:
            return None
        case 1 | 2:
            return random.choice(ODD_NUMBERS)
        case 3 | 4:
            return odd_text(random)
        case 5 | 6:
            return [odd_value(random, depth - 1) for _ in range(random.randrange(4))]
        case _:
            return {odd_text(random): odd_value(random, depth - 1) for _ in range(random.randrange(4))}


def spoilt(value: Any, random: Random) -> Any:
    """JSON with some of its values, at any depth, replaced, left out or put elsewhere."""
    if random.random() < 0.1:
        return odd_value(random)
    if isinstance(value, dict):
        changed = {key: spoilt(inner, random) for key, inner in value.items() if random.random() > 0.03}
        if random.random() < 0.1:
            changed[odd_text(random)] = odd_value(random)
        return changed
    if isinstance(value, list):
        return [spoilt(inner, random) for inner in value] * random.choice((1, 1, 1, 1, 2))
    return value


def json_bytes(value: Any, random: Random) -> bytes:
    """As a file may hold it: in UTF-8, now and then with a mark, in UTF-16, or with halves of surrogate pairs as
    bytes; NaN and infinities as Python writes them.
    """
    is_escaped = random.random() < 0.7
    text = json.dumps(value, ensure_ascii=is_escaped)
    encoding = "utf-8" if is_escaped else random.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16"))
    return text.encode(encoding, errors="surrogatepass")
