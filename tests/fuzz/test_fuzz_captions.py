"""Captions in any encoding, edits and filters with any text and expression, prompts with any syntax."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from PIL import Image

from lora_train.core.errors import ConfigError, TrainToolsError
from lora_train.data.caption_edits import Context, Operation, apply, title
from lora_train.data.caption_filters import matching, parse_filter
from lora_train.data.caption_tags import common_tags, count_tags
from lora_train.data.captions import (
    caption_text,
    common_tag,
    compose_caption,
    decode_text,
    has_word,
    split_tags,
    tag_frequency,
)
from lora_train.data.dataset import fingerprint, scan_dataset
from lora_train.data.picture_text import caption_of_infotext, caption_of_prompt
from lora_train.data.prompts import read_attention, unread_syntax, weighted_chunks, without_tags

TEXTS = (
    "1girl, long hair",
    "日本語、テスト",
    "каталог, кот",
    "图片，猫",
    "ｱｲｳ",
    "naïve café",
    "a" * 50,
    "🙂, x",
    "\u202eabc",
)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp932", "gb18030", "cp1252", "euc-kr", "cp1251")


def require_caption(text: str) -> None:
    """One line that every file and answer can hold."""
    text.encode("utf-8")
    assert "\n" not in text
    assert "\r" not in text
    assert "\x00" not in text


@pytest.mark.parametrize("seed", range(2))
def test_bytes_of_any_encoding(
    guard: Any, share: Callable[[int], int], damaged: Callable[[bytes, Random], bytes], odd: Any, seed: int
) -> None:
    random = Random(f"captions {seed}")

    def look(raw: bytes) -> None:
        decode_text(raw)
        caption = caption_text(raw)
        require_caption(caption)
        tag_frequency([caption])
        common_tag([caption, caption])
        composed = compose_caption(
            caption, trigger_word="sks", shuffle=True, keep_tags=1, dropout=0.1, random=Random(seed)
        )
        require_caption(composed)

    for _ in range(share(6_000)):
        raw = random.choice(TEXTS).encode(random.choice(ENCODINGS), "ignore")
        match random.randrange(4):
            case 0:
                raw = random.randbytes(random.randrange(60))
            case 1:
                raw = odd.odd_text(random).encode("utf-16", "surrogatepass")
            case 2:
                raw = damaged(raw, random) if raw else raw
            case _:
                pass
        guard(look, raw)
    for large in (b"\xff\xfe" * 500_000, b"\x81" * 1_000_001, b"\x00" * 1_000_000, b"a," * 500_000, b"\n" * 1_000_000):
        guard(look, large)


# --- edits ---

_KINDS = ("add", "remove", "replace", "prepend", "append", "sort", "dedupe", "trigger first", "set")


def _operation(random: Random, text: Callable[[], str]) -> Operation:
    kind = random.choice(_KINDS)
    fields: dict[str, Any] = {
        "add": lambda: {"tags": text(), "place": random.choice(("start", "end", "after trigger"))},
        "remove": lambda: {"tags": text()},
        "replace": lambda: {"find": text(), "replacement": text(), "within": random.choice(("tag", "text"))},
        "prepend": lambda: {"text": text(), "joined_by": random.choice((", ", " "))},
        "append": lambda: {"text": text()},
        "sort": lambda: {"by": random.choice(("alphabet", "frequency", "length"))},
        "dedupe": dict,
        "trigger first": dict,
        "set": lambda: {"text": text()},
    }[kind]()
    return msgspec.convert({"kind": kind, **fields}, Operation)


@pytest.mark.parametrize("seed", range(2))
def test_edits(guard: Any, share: Callable[[int], int], odd: Any, seed: int) -> None:
    random = Random(f"edits {seed}")

    def text() -> str:
        pieces = (odd.odd_text(random), random.choice(TEXTS), random.choice(TEXTS).upper(), "long hair", ",")
        return ", ".join(random.choices(pieces, k=random.randrange(1, 4)))

    def look(operation: Operation, captions: dict[str, str]) -> None:
        title(operation)
        context = Context(random.choice(("", "sks", "İ", "a,b")), {"a": 3})
        changed = apply(operation, captions, context)
        assert changed.keys() <= captions.keys()
        for key, caption in changed.items():
            require_caption(caption)
            assert caption != captions[key]
        common_tags(count_tags(captions.values()), len(captions))

    for _ in range(share(5_000)):
        captions = {f"{number}.png": caption_text(text().encode("utf-8", "ignore")) for number in range(3)}
        guard(look, _operation(random, text), captions)


EVIL = (
    *("(a+)+b", "(a|a)*b", "(a|aa)+$", "(.*a){30}", "([a-z]+)*!", "^(([a-z])+.)+[A-Z]([a-z])+$", "(x+x+)+y"),
    *("(?=(a+))a*b\\1", "a{1,65535}{1,65535}", "(?:a{1000}){1000}", "((((((((((a*)*)*)*)*)*)*)*)*)*)*b", "(?i)(ſ|s)+K"),
    *(
        "(" * 300 + ")" * 300,
        "[" * 999,
        "\\",
        "(?P<a",
        "*",
        "a**",
        "(?<=a*)b",
        "\\99999",
        "(?(1)a|b)",
        "x{99999999999}",
    ),
    *("\ud800", "\x00", "(?#" + "x" * 2_000, "\\N{LATIN}", "(?s:.*)", "", "[^\\x00-\\U0010ffff]", "a" * 1_500),
)
REPLACEMENTS = ("", "\\1", "\\g<0>" * 190, "\\g<x>", "\\99", "\\", "x" * 900, "\\g<0>,", "\n", "\ud800")


def test_evil_expressions(guard: Any, share: Callable[[int], int]) -> None:
    captions = {"a.png": "a" * 5_000 + "!", "b.png": "x" * 200, "c.png": "1girl, long hair"}
    random = Random("expressions")
    pairs = [(expression, replacement) for expression in EVIL for replacement in REPLACEMENTS]
    for expression, replacement in random.sample(pairs, share(100)):
        within = random.choice(("tag expression", "caption expression"))
        operation = msgspec.convert(
            {"kind": "replace", "find": expression, "replacement": replacement, "within": within}, Operation
        )
        guard(apply, operation, captions, Context())
    for expression in random.sample(EVIL, share(20)):
        guard(lambda text=f"/{expression}/": matching(captions, parse_filter(text)))


def test_a_replacement_that_grows_is_stopped_before_the_memory_is_full(guard: Any) -> None:
    """Each of 20,000 places would be replaced by 190 times the rest: 38 GB."""
    operation = msgspec.convert(
        {"kind": "replace", "find": "(?=(.*))", "replacement": "\\1" * 330, "within": "caption expression"}, Operation
    )
    assert isinstance(guard(apply, operation, {"a.png": "a" * 20_000}, Context()), ConfigError)


def test_a_long_text_to_find_takes_no_time(guard: Any) -> None:
    captions = {f"{number}.png": "a" * 20_000 for number in range(50)}
    for find in ("a" * 4_999 + "b", "a" * 2_500 + "b" + "a" * 2_000):
        guard(
            apply, msgspec.convert({"kind": "replace", "find": find, "within": "text"}, Operation), captions, Context()
        )


def test_filters(guard: Any, share: Callable[[int], int], odd: Any) -> None:
    random, captions = Random("filters"), {"a.png": "1girl, long hair", "b.png": "", "c.png": "日本語"}

    def look(text: str) -> None:
        chosen = parse_filter(text, random.choice(("and", "or")))
        if not any(term.kind == "expression" for term in chosen.terms):  # each takes a process; see above
            assert set(matching(captions, chosen)) <= captions.keys()

    for _ in range(share(5_000)):
        signs = random.choices([*'-"/*, \\', "long hair", odd.odd_text(random)], k=random.randrange(12))
        guard(look, "".join(signs))
    for long in (
        '"' * 20_001,
        "/" * 20_001,
        "-" * 20_000,
        "," * 20_000,
        " " * 20_000 + "x",
        "/\\" * 10_000,
        "*" * 20_000,
    ):
        guard(look, long)


# --- prompts ---

_PROMPT = (*"()[]:|\\,<> .", "(a:1.2)", "BREAK", "AND", "<lora:x:1>", "cat", "::", "1.5", "[a:b:0.5]", "\n", "((", "))")


def look_at_prompt(prompt: str) -> None:
    without_tags(prompt)
    unread_syntax(prompt)
    parts = read_attention(prompt)
    assert parts
    assert sum(part.text.count("a") for part in parts) == prompt.count("a"), "something was left out"
    chunks = weighted_chunks(parts, [[1] * (len(part.text) % 90) for part in parts], 267)
    assert all(len(chunk.ids) == len(chunk.weights) <= 75 for chunk in chunks)
    require_caption(caption_of_prompt(prompt))
    require_caption(caption_of_infotext(f"{prompt}\nSteps: 20, Seed: 1"))


@pytest.mark.parametrize("seed", range(2))
def test_prompts(guard: Any, share: Callable[[int], int], odd: Any, seed: int) -> None:
    random = Random(f"prompts {seed}")
    for _ in range(share(6_000)):
        prompt = "".join(random.choices(_PROMPT, k=random.randrange(40)))
        if random.random() < 0.3:
            prompt += odd.odd_text(random).encode("utf-8", "ignore").decode()
        guard(look_at_prompt, prompt)


LONG_PROMPTS = (
    *(
        "(" * 20_000,
        "(a" * 10_000,
        "(a" * 5_000 + ")" * 5_000,
        "[a" * 10_000,
        "[" + "|" * 20_000,
        "[" + ":1" * 10_000,
    ),
    *(
        " " * 20_000,
        " " * 20_000 + "x",
        "BREAK " * 3_000,
        "(" + " " * 20_000 + "BREAK",
        ":" + " " * 20_000,
        ": " * 10_000,
    ),
    *("<a:" * 7_000, "<" + "a" * 20_000, "\\" * 20_001, "(a:" + "9" * 10_000 + ")", "(a:" + "." * 10_000 + ")"),
    *(
        "AND " * 5_000,
        "[a:b:" * 4_000,
        "]" * 20_000,
        "(a:1e9)" * 3_000,
        "[" * 10_000 + "]" * 10_000,
        "a:1.1)" * 3_000,
    ),
    *("(\\(" * 7_000, "[a|" * 7_000, "(((((a:2):2):2):2):2)" * 900, "(a:99999)" * 2_000),
    *("(a" * 50_000, "[a" * 25_000 + ")" * 25_000 + "]" * 25_000, "\\(" * 50_000, "[(a])" * 20_000),
)


def test_long_prompts(guard: Any, share: Callable[[int], int]) -> None:
    for prompt in Random("long prompts").sample(LONG_PROMPTS, share(len(LONG_PROMPTS))):
        guard(look_at_prompt, prompt)


# --- folders ---


def test_caption_files_and_folders_of_a_dataset(
    tmp_path: Path, guard: Any, share: Callable[[int], int], odd: Any
) -> None:
    """A person's own folder: whatever lies in it, the rest is found."""
    random = Random("folders")

    def look(root: Path) -> None:
        found = scan_dataset(root)
        fingerprint(found)
        msgspec.json.encode(found.problems)
        for picture in found.pictures:
            require_caption(picture.caption)
            split_tags(picture.caption)
            has_word(picture.caption, "sks")

    for number in range(share(300)):
        root = tmp_path / str(number)
        folder = root / random.choice(("10_a", "0_b", "9" * 30 + "_c", "reg", "1_é", "-1_x", "mask", "٣_x", "10_"))
        folder.mkdir(parents=True)
        Image.new("RGB", (3, 3)).save(folder / "a.png")
        Image.new("RGB", (3, 3)).save(root / "b.png")
        (root / "b.txt").write_bytes(odd.odd_text(random).encode("utf-8", "surrogatepass"))
        (folder / random.choice(("a.txt", "a.caption", "A.TXT"))).write_bytes(random.randbytes(random.randrange(200)))
        guard(look, root)


def test_a_caption_file_of_gigabytes_is_told(tmp_path: Path, guard: Any) -> None:
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(8 * 2**30)  # takes no room on the disk
    error = guard(scan_dataset, tmp_path)
    assert isinstance(error, TrainToolsError)
    assert "a.txt" in error.message
