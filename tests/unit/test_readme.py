"""The README and the pages of `docs`: links lead somewhere, tables are whole, figures have a source, and every command
is known, parsed, and proven here, in `tests/integration/test_readme.py` or where `pages.WAYS` says.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_train.__main__ import _parser
from lora_train.api.routes import ROUTES
from lora_train.commands.arguments import values_of
from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.config import TrainSettings
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.settings import parse_settings, setting_fields

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
SCREENSHOTS = ROOT / "docs" / "screenshots"
PICTURE_LIMIT_BYTES = 150 * 1024
PICTURES_LIMIT_BYTES = 1536 * 1024


@pytest.fixture(scope="session")
def pages() -> Any:
    """`tests/assets/pages.py`, which reads the pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tests" / "assets")
        import pages

        return pages


# --- links and pictures ---


def test_links_and_pictures_lead_somewhere(pages: Any) -> None:
    broken: list[str] = []
    for page in pages.PAGES:
        for link in pages.links_of(page):
            if re.match(r"https?:", link):
                continue
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            if not target.exists() or (anchor and anchor not in pages.anchors_of(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken


def test_screenshots_are_small_and_all_are_shown(pages: Any) -> None:
    shown = {(page.parent / link).resolve() for page in pages.PAGES for link in pages.links_of(page)}
    files = sorted(SCREENSHOTS.iterdir())
    assert [file.name for file in files if file not in shown] == []
    assert [file.name for file in files if file.stat().st_size > PICTURE_LIMIT_BYTES] == []
    assert sum(file.stat().st_size for file in files) <= PICTURES_LIMIT_BYTES


# --- what the tables and sections say ---


def test_every_question_is_answered_in_three_lines(pages: Any) -> None:
    section = pages.section_of(README, "Questions people ask")
    answers = re.split(r"^\*\*(\d+)\. .+\*\*$", section, flags=re.MULTILINE)[1:]
    assert [int(number) for number in answers[::2]] == list(range(1, 26))
    lengths = [len(answer.strip().split("\n")) for answer in answers[1::2]]
    assert max(lengths) <= 3, lengths


def test_the_japanese_steps_are_the_english_ones(pages: Any) -> None:
    english = pages.section_of(README, "Five steps")
    japanese = pages.section_of(README, "日本語: 五つの手順")
    for section in (english, japanese):
        assert re.findall(r"^### (\d)\. ", section, re.MULTILINE) == list("12345")
    pictures = [re.findall(r"screenshots/(step-[\w-]+?)(?:-en|-ja)?\.png", section) for section in (english, japanese)]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 5


FIGURES = {
    "SD 1.5 at 512 px {} kernels": "| SD 1.5 512 b1, ours | {} |",
    "kernels where kohya's sd-scripts start {};": "| SD 1.5 512 b1, kohya | {} |",
    "SDXL at 1024 px {} where": "| SDXL 1024 b1, ours | {} |",
    "where they start {}.": "| SDXL 1024 b1, kohya | {} |",
    "with kohya's sd-scripts: {} s a step": "| ours | {} |",
    "theirs {};": "| kohya's sd-scripts | {} |",
    "alone, in {} GB": "peak RSS {} GB (the target is 4.3)",
    "**The demo**: {} s on two cores": "beside a job on both cores: {} s.",
    "that is {} GB as it is set": "| as it is set | 5.3 GB | {} GB |",
    "{} GB with gradient checkpointing of all": "| gradient checkpointing of all blocks | 2.5 GB | {} GB |",
    "{} GB with all there is": "| 90 % of it | 1.0 GB | {} GB |",
}
"""Where a figure of the README's "Speed and memory" stands, and where in docs/benchmarks.md or docs/memory.md."""
NAMES = r"SD 1\.5|sd-scripts|\b(256|512|1024) px|batch (of )?\d\b|docs/\S+"
"""What has a digit there, and is no figure."""


def test_figures_of_speed_and_memory_stand_in_their_sources(pages: Any) -> None:
    """Each as what it is told to be; and there is none that the list above does not know."""
    section = " ".join(pages.section_of(README, "Speed and memory").split())
    docs = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("benchmarks.md", "memory.md")]
    sources = " ".join("".join(docs).split())
    told: list[str] = []
    for there, source in FIGURES.items():
        found = re.findall(re.escape(there).replace(r"\{\}", r"(\d+(?:\.\d+)?)"), section)
        assert len(found) == 1, f"{there!r} stands there {len(found)} times"
        assert source.format(*found) in sources, f"{there.format(*found)!r} has another number in docs"
        told += found
    rest = re.sub(NAMES, "", section)
    assert sorted(re.findall(r"\d+(?:\.\d+)?", rest)) == sorted(told)


@pytest.mark.parametrize(
    ("headings", "schema"),
    [
        (
            (
                "The training",
                "How fast and how much it learns",
                "How much it can hold",
                "What is read of the captions",
                "What it pays attention to",
                "Memory and speed; the picture stays the same",
                "Measuring, previews, the file",
            ),
            TrainSettings,
        ),
        (("Pictures: *Update Dataset*",), DatasetSettings),
        (("Captions by a model",), CaptionSettings),
    ],
    ids=["training", "dataset", "captions"],
)
def test_settings_and_their_defaults_are_the_real_ones(pages: Any, headings: tuple[str, ...], schema: Any) -> None:
    page = ROOT / "docs" / "settings.md"
    rows = [row for heading in headings for row in pages.rows_of(pages.section_of(page, heading))]
    told = {row[0].strip("`"): row[1] for row in rows}
    assert len(told) == len(rows)
    assert told == {field.name: _told(field.default) for field in setting_fields(schema)}


def _told(default: Any) -> str:
    if isinstance(default, tuple):
        return ", ".join(f"{number:g}" for number in default)
    return str(default).lower() if isinstance(default, bool) else f"{default:g}" if _is_number(default) else default


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def test_every_route_is_told_of(pages: Any) -> None:
    rows = pages.rows_of(pages.section_of(ROOT / "docs" / "api.md", "Routes"))
    assert [row[0].strip("`") for row in rows] == [f"{route.method} {route.path}" for route in ROUTES]


def test_every_command_is_told_of(pages: Any) -> None:
    rows = pages.rows_of(pages.section_of(ROOT / "docs" / "commands.md", "All commands"))
    told = {name for row in rows for name in pages.names_in(row[0])}
    assert told == set(_command_names(_parser()))


def _command_names(parser: argparse.ArgumentParser, before: str = "") -> Iterator[str]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield before.strip()
    for group in groups:
        for name, command in group.choices.items():
            yield from _command_names(command, f"{before} {name}")


# --- commands ---


def test_every_command_is_proven_somehow(pages: Any) -> None:
    assert [command for command in pages.proven_commands() if not command.way] == []
    assert len(pages.mentions_of(README)) > 10


def test_commands_that_are_proven_elsewhere_are(pages: Any) -> None:
    """The test that is named starts the same command, with the same options."""
    for command in pages.proven_commands():
        if command.way.startswith("tests/"):
            test = (ROOT / command.way).read_text(encoding="utf-8")
            words = shlex.split(command.text)
            rare = [word for word in words if word in ("demo", "--processes", "--download")]
            assert rare, command
            assert [word for word in rare if f'"{word}"' not in test] == [], command


def test_our_own_commands_are_understood(pages: Any) -> None:
    """Also those of pages that are not proven. The parser ends the test with a sentence where one is wrong."""
    count = 0
    names = set(_command_names(_parser()))
    commands = [command for page in pages.PAGES for command in pages.commands_of(page)]
    for command in (*commands, *pages.proven_commands()):
        for words in _ours(command.text):
            if " ".join(words) not in names:  # a sentence may be about a command, without its arguments
                _parser().parse_args(words)
                count += 1
    assert count > 25


def _ours(text: str) -> Iterator[list[str]]:
    """The arguments of each `lora-train` or `-m lora_train` in a command."""
    if not text.startswith(("lora-train ", "accelerate launch ")) or "OPTIONS" in text:
        return
    words = shlex.split(text.split(" | ")[0])
    if "--compare" in words and "--" in words:
        words = words[: words.index("--")]
    for mark in ("lora-train", "lora_train"):
        if mark in words:
            yield words[words.index(mark) + 1 :]


def test_settings_that_are_shown_can_be_set(pages: Any) -> None:
    count = 0
    for command in pages.proven_commands():
        words = [word for words in _ours(command.text) for word in words]
        if command.way == "options":
            words = ["train", "--name", "x", *shlex.split(command.text)]
        if words and words[0] == "train":
            parse_settings(values_of(_parser().parse_args(words)))
            count += 1
    assert count > 12


def test_pip_understands_what_is_not_run(pages: Any) -> None:
    pytest.importorskip("pip")
    from pip._internal.commands import create_command

    install = create_command("install")
    found = [command for command in pages.proven_commands() if command.way == "index"]
    assert found
    for command in found:
        options, packages = install.parse_args(shlex.split(command.text)[4:])
        assert packages == ["torch"]
        assert options.index_url.startswith("https://download.pytorch.org/whl/"), command


def test_files_and_options_of_python_commands_are_there(pages: Any, pytestconfig: pytest.Config) -> None:
    known = {option for group in pytestconfig._parser._groups for one in group.options for option in one.names()}
    known |= {"-m"}
    for page in pages.PAGES:
        for command in pages.commands_of(page):
            words = shlex.split(command.text.split(">")[0].partition(" python ")[2] or command.text)
            if "pytest" in words:
                words = words[words.index("pytest") + 1 :]
                assert {word for word in words if word.startswith("--")} <= known, command
                assert [word for word in words if word.startswith("tests") and not (ROOT / word).exists()] == []
            elif words[:1] == ["python"] and words[1].startswith("tests/"):
                source = (ROOT / words[1]).read_text(encoding="utf-8")
                compile(source, words[1], "exec")
                assert [word for word in words[2:] if word.startswith("--") and word not in source] == [], command
