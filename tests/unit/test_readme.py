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


def test_figures_of_speed_and_memory_stand_in_their_sources(pages: Any) -> None:
    section = pages.section_of(README, "Speed and memory")
    sources = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("benchmarks.md", "memory.md"))
    number = r"\d+(?:\.\d+)?"
    known = set(re.findall(number, sources))
    figures = re.findall(number, section)
    assert len(figures) > 15
    assert [figure for figure in figures if figure not in known] == []


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
    unknown = [command for page in pages.PROVEN for command in pages.commands_of(page) if not command.way]
    assert unknown == []


def test_commands_that_are_proven_elsewhere_are(pages: Any) -> None:
    """The test that is named starts the same command, with the same options."""
    for command in _all(pages):
        if command.way.startswith("tests/"):
            test = (ROOT / command.way).read_text(encoding="utf-8")
            words = shlex.split(command.text)
            rare = [word for word in words if word in ("demo", "--processes", "--download")]
            assert rare, command
            assert [word for word in rare if f'"{word}"' not in test] == [], command


def test_our_own_commands_are_understood(pages: Any) -> None:
    """Also those of pages that are not proven. The parser ends the test with a sentence where one is wrong."""
    count = 0
    for page in pages.PAGES:
        for command in pages.commands_of(page):
            for words in _ours(command.text):
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
    for command in _all(pages):
        words = [word for words in _ours(command.text) for word in words]
        if command.way == "options":
            words = ["train", "--name", "x", *shlex.split(command.text)]
        if words and words[0] == "train":
            parse_settings(values_of(_parser().parse_args(words)))
            count += 1
    assert count > 8
    for setting in re.findall(r"`--set (\w+=\w+)`", README.read_text(encoding="utf-8")):
        parse_settings(values_of(_parser().parse_args(["train", "--name", "x", "--set", setting])))


def test_pip_understands_its_commands(pages: Any) -> None:
    pytest.importorskip("pip")
    from pip._internal.commands import create_command

    install = create_command("install")
    for command in _all(pages):
        if command.way == "pip":
            _, packages = install.parse_args(shlex.split(command.text)[4:])
            assert packages, command
            for package in packages:
                assert package in (".", ".[dev]", "torch"), command


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


def test_two_machines_are_started_by_options_that_accelerate_knows(pages: Any) -> None:
    source = pytest.importorskip("importlib.util").find_spec("accelerate")
    if source is None or source.origin is None:
        pytest.skip("accelerate is not installed")
    launch = (Path(source.origin).parent / "commands" / "launch.py").read_text(encoding="utf-8")
    found = [command for command in _all(pages) if command.way == "accelerate"]
    assert found
    for command in found:
        own = shlex.split(command.text.partition(" -m lora_train ")[0])
        unknown = [word for word in own if word.startswith("--") and f'"{word}"' not in launch]
        assert unknown == [], command


def _all(pages: Any) -> Iterator[Any]:
    for page in pages.PROVEN:
        yield from pages.commands_of(page)
