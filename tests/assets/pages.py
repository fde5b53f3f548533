"""Reads the README and the pages of `docs`: their links, headings, tables and commands.

`WAYS` says how each command is proven. A command that matches nothing there fails `tests/unit/test_readme.py`.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "tests" / "bench" / "README.md"]
PROVEN = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("commands", "api", "several_machines"))]
"""The pages whose every command is proven, in blocks and in sentences. In the others, our parser knows those of
`lora-train` that stand in blocks.
"""

WAYS = (
    ("git", r"git clone <this repository>|git -C extensions/train-tools pull|git pull$|cd "),
    ("index", r"python -m pip install torch "),
    ("gate", r"\.ci/run$|python -m pip install \"\.\[dev\]\"$"),
    ("pip", r"python -m pip install \.$"),
    ("pytest", r"python -m pytest"),
    ("script", r"python tests/"),
    ("accelerate", r"accelerate launch "),
    ("calls", r"curl |call |call\(\)|API=|json=|job=|until "),
    ("page", r"lora-train ui"),
    ("tests/integration/test_demo.py", r"lora-train demo$"),
    ("tests/integration/test_processes.py", r"lora-train (train|resume) .*--processes"),
    ("tests/integration/test_cli_datasets.py", r"lora-train caption .*--download"),
    ("options", r"--set "),
    ("run", r"lora-train "),
)
"""How a command is proven, and which ones are; the first that fits counts. A path is the test that runs it elsewhere.

git         run, with a copy of this repository in the place of <this repository>
index       read by pip's own parser: there is no network, and torch has gigabytes
gate        what runs these tests, and what it runs before; read by bash
pip         run in a copy, into a folder of its own, without what it depends on
pytest      run, with tests of a moment in the place of all
script      it is there, and has the options: it takes minutes
accelerate  run, with two processes of this machine in the place of two machines
calls       run, against a page that is started for them
page        run, until the page answers
options     of `lora-train train`, checked as it checks them
run         run, with a small base model in the place of every base model, and few steps; in a sentence, which leaves
            out what a command is about, the command of that name
"""


class Command(NamedTuple):
    """One command of a page, in one line."""

    page: str
    text: str

    @property
    def way(self) -> str:
        """How it is proven; empty where nothing knows it."""
        return next((way for way, pattern in WAYS if re.match(pattern, self.text)), "")


def blocks_of(page: Path) -> list[str]:
    """The indented code blocks of a page, without their indentation, in order; and the fenced ones."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    found: list[list[str]] = []
    is_in_code, previous_is_blank = False, True
    for line in re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL).split("\n"):
        if line.startswith("    ") and (is_in_code or previous_is_blank):
            if not is_in_code:
                found.append([])
            is_in_code = True
        elif line.strip():
            is_in_code = False
        if is_in_code:
            found[-1].append(line)
        previous_is_blank = not line.strip()
    return [textwrap.dedent("\n".join(lines)).strip("\n") for lines in found] + fenced


def commands_of(page: Path) -> list[Command]:
    """Every command in the code blocks of a page, parted at `&&`, without comments. Trees of folders are none."""
    name = page.relative_to(ROOT).as_posix()
    return [
        Command(name, part.strip())
        for block in blocks_of(page)
        if not block.startswith(("projects/", "{", "gain "))
        for line in _lines(block)
        for part in line.split(" && ")
    ]


def mentions_of(page: Path) -> list[Command]:
    """Every command that a sentence of a page gives. The tables of commands have tests of their own."""
    name = page.relative_to(ROOT).as_posix()
    sentences = re.sub(r"^\|.*$", "", prose_of(page), flags=re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", sentences)]
    begins = r"(accelerate|bash|curl|git|lora-train|pip|python|sh) |\.ci/|--set (?!key=value)"
    return [Command(name, span) for span in spans if re.match(begins, span)]


def proven_commands() -> list[Command]:
    """Those of all pages of `PROVEN`."""
    return [command for page in PROVEN for command in (*commands_of(page), *mentions_of(page))]


def _lines(block: str) -> list[str]:
    """Whole commands: a backslash goes on, and so does an open quotation mark."""
    whole: list[str] = []
    rest = ""
    for line in block.replace("\\\n", " ").split("\n"):
        rest = f"{rest}\n{line}" if rest else line
        try:
            shlex.split(rest, comments=True)
        except ValueError:
            continue
        rest = re.sub(r"\s+# .*$|\s+#.*$", "", rest) if "#" in rest and "\n" not in rest else rest
        if rest.strip():
            whole.append(re.sub(r" {2,}", " ", rest.strip()))
        rest = ""
    assert not rest, f"an open quotation mark: {rest}"
    return whole


def prose_of(page: Path) -> str:
    """The page without its code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^ {4,}.*$", "", text, flags=re.MULTILINE)


def links_of(page: Path) -> list[str]:
    """What links and pictures of a page point to."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose_of(page)))


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).lower()).replace(" ", "-") for heading in headings}


def section_of(page: Path, heading: str) -> str:
    """The text below a heading, up to the next one that is as high or higher."""
    match = re.search(rf"^(#+) {re.escape(heading)}$", text := page.read_text(encoding="utf-8"), re.MULTILINE)
    assert match, f"{page.name} has no heading {heading!r}"
    rest = text[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows_of(text: str) -> list[list[str]]:
    """The cells of every row of the tables in a text, without heads and rules."""
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]
        for line in text.split("\n")
        if line.startswith("|")
    ]
    rules = [index for index, row in enumerate(rows) if all(re.fullmatch(r":?-+:?", cell) for cell in row)]
    return [row for index, row in enumerate(rows) if index not in rules and index + 1 not in rules]


def names_in(cell: str) -> list[str]:
    """The commands of `lora-train` that a cell is about: "captions list\\|show" are two."""
    words = re.findall(r"`lora-train ([^`]+)`", cell)[0].replace("\\|", "|").split()
    if words[0] in ("dataset", "captions", "presets", "tool"):
        return [f"{words[0]} {name}" for name in words[1].split("|")]
    return words[:1]
