"""Prompts in pictures, as the WebUIs write them, become captions."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from lora_train.data.existing import existing_captions
from lora_train.data.picture_text import caption_of_infotext, caption_of_prompt, prompt_in

SETTINGS = (
    "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 6ce0161689, "
    "Model: v1-5-pruned-emaonly, Version: v1.10.1"
)
INFOTEXT = f"masterpiece, (1girl:1.2), 猫\nNegative prompt: lowres, (bad hands:1.4)\n{SETTINGS}"
CAPTION = "masterpiece, 1girl, 猫"


@pytest.mark.parametrize(
    ("infotext", "caption"),
    [
        (INFOTEXT, CAPTION),
        (f"a cat\n{SETTINGS}", "a cat"),
        (f"a cat,\non a mat\nNegative prompt: dog\ncow\n{SETTINGS}", "a cat, on a mat"),
        (f"a cat\r\nNegative prompt: dog\r\n{SETTINGS}", "a cat"),
        (f"a cat\n{SETTINGS}\nTemplate: a {{cat|dog}}\nNegative Template: cow", "a cat"),
        (f"\nNegative prompt: dog\n{SETTINGS}", ""),
        (SETTINGS, ""),
        ("a cat\nNegative prompt: dog", ""),
        ("Created with GIMP", ""),
        ('{"nodes": []}', ""),
        ("", ""),
        (f"Steps: many, of a stair\n{SETTINGS}", "Steps: many, of a stair"),
    ],
)
def test_the_part_before_the_negative_prompt(infotext: str, caption: str) -> None:
    assert caption_of_infotext(infotext) == caption


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [
        ("a cat", "a cat"),
        ("cat, <lora:cat-v1:0.8>, mat", "cat, mat"),
        ("<lora:a:1><hypernet:b:0.5> cat <lyco:c:1:0.5>", "cat"),
        ("(cat:1.2), ((mat)), [dog], (((a:1.1), b):.9)", "cat, mat, dog, a, b"),
        ("(blue eyes, long hair:1.3) girl", "blue eyes, long hair girl"),
        (r"saber \(fate\), (lancer \(fate\):1.2), a\\b", r"saber (fate), lancer (fate), a\b"),
        ("[cat:dog:0.5], [mat:10], [bird::0.7], [[a:b:3]:c:0.2]", "dog, mat, bird, c"),
        ("[cow|horse] in a field", "cow horse in a field"),
        ("a BREAK b, BREAK, c", "a, b, c"),
        ("BREAKFAST in an ANDROID", "BREAKFAST in an ANDROID"),
        ("a cat :1.2 AND a dog AND a cow:-0.5", "a cat, a dog"),
        ("a\nb ,  , c,\n\nd", "a b, c, d"),
        ("unclosed (cat, [mat", "unclosed cat, mat"),
        ("smiling :), ;), 16:9, time 12:30", "smiling :), ;), 16:9, time 12:30"),
        ("(a), [b:c], [:0.5]", "a, b:c"),
        ("(" * 5000 + "cat" + ")" * 5000, "cat"),
        ("白い猫、(座る:1.2)", "白い猫、座る"),
        ("", ""),
    ],
)
def test_what_only_the_sampler_understands_goes(prompt: str, caption: str) -> None:
    assert caption_of_prompt(prompt) == caption


def test_a_text_that_is_no_prompt_is_no_burden() -> None:
    assert len(caption_of_prompt("([" * 500_000)) <= 20_000


# --- in files ---


def png(path: Path, text: str, *, name: str = "parameters") -> Path:
    """As the WebUI saves: Latin-1 as tEXt, anything else as iTXt."""
    info = PngImagePlugin.PngInfo()
    info.add_text(name, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def with_comment(path: Path, comment: bytes) -> Path:
    exif = Image.Exif()
    exif._ifds[0x8769] = {0x9286: comment}
    exif[0x8769] = exif._ifds[0x8769]
    Image.new("RGB", (8, 8)).save(path, exif=exif.tobytes())
    return path


def test_png(tmp_path: Path) -> None:
    assert prompt_in(png(tmp_path / "a.png", INFOTEXT)) == CAPTION
    assert prompt_in(png(tmp_path / "b.png", f"café\n{SETTINGS}")) == "café"
    assert prompt_in(png(tmp_path / "c.png", INFOTEXT, name="prompt")) == ""


def test_utf_8_where_latin_1_belongs(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", "x")
    chunk = b"tEXtparameters\x00" + INFOTEXT.encode("utf-8")
    whole = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    content = path.read_bytes()
    at = content.index(b"IDAT") - 4
    path.write_bytes(content[:at] + whole + content[at:])
    assert prompt_in(path) == CAPTION


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\x00" + INFOTEXT.encode("utf-16-be"),
        b"UNICODE\x00" + INFOTEXT.encode("utf-16-le"),
        b"UNICODE\x00" + INFOTEXT.encode("utf-8"),
        b"\x00" * 8 + INFOTEXT.encode("utf-8"),
        b"JIS\x00\x00\x00\x00\x00" + INFOTEXT.encode("cp932"),
    ],
    ids=["UTF-16 BE, as the WebUI writes it", "UTF-16 LE", "UTF-8", "no code", "Shift-JIS"],
)
def test_exif(tmp_path: Path, suffix: str, comment: bytes) -> None:
    assert prompt_in(with_comment(tmp_path / f"a{suffix}", comment)) == CAPTION


@pytest.mark.parametrize("comment", [b"", b"ASCII\x00\x00\x00Created with GIMP", b"\xff", b"UNICODE\x00\xd8\x00"])
def test_comments_of_others(tmp_path: Path, comment: bytes) -> None:
    assert prompt_in(with_comment(tmp_path / "a.jpg", comment)) == ""


def test_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert prompt_in(tmp_path / "a.png") == prompt_in(tmp_path / "none.png") == ""


# --- with caption files ---


def test_a_caption_file_comes_before_the_prompt_in_the_picture(tmp_path: Path) -> None:
    for stem in ("a", "b", "c", "が"):
        png(tmp_path / f"{stem}.png", INFOTEXT)
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "a.txt").write_text("written by hand", encoding="utf-8")
    (tmp_path / "b.caption").write_text("", encoding="utf-8")
    (tmp_path / "か\u3099.txt").write_text("decomposed", encoding="utf-8")
    (tmp_path / ".incoming-x").mkdir()
    assert existing_captions(tmp_path) == {"a": "written by hand", "b": "", "c": CAPTION, "が": "decomposed"}
    assert existing_captions(tmp_path / "none") == {}
