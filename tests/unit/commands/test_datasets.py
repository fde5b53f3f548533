"""What the commands say of a finding, and the operation that their options stand for."""

from __future__ import annotations

import argparse

import pytest

from lora_train.app.captions import Operation
from lora_train.commands import captions
from lora_train.commands.arguments import Parser
from lora_train.commands.datasets import finding_lines
from lora_train.core.errors import ConfigError
from lora_train.core.health import Counted, Finding, Group, Shown
from lora_train.data.caption_edits import AddTags, AppendText, DedupeTags, Replace, SortTags, TriggerFirst


def test_a_finding_in_words() -> None:
    finding = Finding(
        kind="enlarged",
        level="warning",
        title="Some are enlarged.",
        remedy="Upload larger ones.",
        limit=1.5,
        unit="×",
        pictures=(Shown("a.png", 1.834, 0.25), Shown("b.png")),
        groups=(Group(("c.png", "d.png")),),
        counts=(Counted("red", 2), Counted("青", 1)),
        sentences=("As it was told.",),
    )
    assert list(finding_lines(finding)) == [
        "Worth a look: Some are enlarged. (limit 1.5 ×)",
        "    As it was told.",
        "    a.png  1.83 ×, loses 25 %",
        "    b.png",
        "    c.png = d.png",
        "    red 2, 青 1",
        "    -> Upload larger ones.",
    ]


def test_a_long_finding_is_counted() -> None:
    shown = tuple(Shown(f"{number}.png") for number in range(30))
    counts = tuple(Counted(f"tag{number}", 1) for number in range(30))
    lines = list(finding_lines(Finding(kind="x", level="info", title="Many.", pictures=shown, counts=counts)))
    assert lines[0] == "Good to know: Many."
    assert lines[-2] == "    and 6 others"
    assert lines[-1].endswith("tag23 1, and 6 others")
    assert len(lines) == 1 + 24 + 1 + 1


def parsed(*arguments: str) -> argparse.Namespace:
    parser = Parser()
    captions.add_commands(parser.add_subparsers())
    return parser.parse_args(["captions", "edit", "--name", "x", *arguments])


@pytest.mark.parametrize(
    ("arguments", "operation"),
    [
        (["--add", "a"], AddTags("a")),
        (["--add", "a", "--at", "after-trigger"], AddTags("a", "after trigger")),
        (["--replace", "a", "", "--within", "text"], Replace("a", "", "text")),
        (["--append", "b"], AppendText("b")),
        (["--sort", "frequency"], SortTags("frequency")),
        (["--dedupe"], DedupeTags()),
        (["--trigger-first"], TriggerFirst()),
    ],
)
def test_options_stand_for_an_operation(arguments: list[str], operation: Operation) -> None:
    assert captions.operation_of(parsed(*arguments)) == operation


def test_options_of_another_operation_are_refused_together() -> None:
    with pytest.raises(ConfigError) as told:
        captions.operation_of(parsed("--dedupe", "--at", "end", "--within", "tag"))
    assert told.value.problems == ["--at: belongs to --add", "--within: belongs to --replace"]
