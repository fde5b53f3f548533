"""Everything the live parts of the page can show, and which of it is words.

`page_words` reads those texts from HTML that languages have to translate; `rendered_states` is the HTML of every part
in every state; `script_words` are the texts of the page's script; `told_sentences` are those that errors and notes
have ready.
"""

from __future__ import annotations

import ast
import importlib
import re
import unicodedata
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

_NOT_WORDS = {"train-tools-value", "train-tools-sentence"}
_VOID = {"img", "br", "input", "line", "polyline", "hr", "meta", "link"}
_WORD_ATTRIBUTES = ("title", "placeholder", "aria-label", "data-done", "data-confirm")
_OPAQUE = {"script", "style", "textarea"}


class _Words(HTMLParser):
    """Collects text nodes and attributes that hold a letter, outside what is made elsewhere: values and sentences."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: set[str] = set()
        self._open: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: text or "" for name, text in attrs}
        is_value = self._is_value or tag in _OPAQUE or not _NOT_WORDS.isdisjoint(given.get("class", "").split())
        if not is_value:
            self._take(*(given.get(name, "") for name in _WORD_ATTRIBUTES))
        if tag not in _VOID:
            self._open.append((tag, is_value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        name, _ = self._open.pop()
        assert name == tag, f"</{tag}> closes <{name}>"

    def handle_data(self, data: str) -> None:
        if not self._is_value:
            self._take(data)

    def close(self) -> None:
        super().close()
        assert not self._open, f"never closed: {self._open}"

    @property
    def _is_value(self) -> bool:
        return bool(self._open) and self._open[-1][1]

    def _take(self, *texts: str) -> None:
        for text in texts:
            if any(unicodedata.category(letter).startswith("L") for letter in text):
                self.found.add(text.strip())


def _page_words(html: str) -> set[str]:
    """The texts that a language has to translate. AssertionError where elements are not closed in order."""
    parser = _Words()
    parser.feed(html)
    parser.close()
    return parser.found


@pytest.fixture(scope="session")
def page_words() -> Callable[[str], set[str]]:
    return _page_words


@pytest.fixture(scope="session")
def script_words() -> set[str]:
    """The texts that the page's script shows by itself, which languages have to translate too."""
    script = (Path(__file__).parents[3] / "javascript" / "train_tools.js").read_text(encoding="utf-8")
    block = script.partition("const WORDS = {")[2].partition("};")[0]
    return set(re.findall(r'^\s*\w+: "(.*)",$', block, re.MULTILINE))


@pytest.fixture(scope="session")
def rendered_states() -> dict[str, str]:
    """Every live part in every state, by name (`ui_states`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        return importlib.import_module("ui_states").rendered_states()


# --- sentences of errors and notes: a person at the page reads them, so languages have to translate them ---

_CORE = Path(__file__).parents[3] / "lora_train"
_TELLERS = ("api", "app", "caption", "core", "data", "engine", "hosts", "launch", "ui", "publish.py", "worker.py")
_SILENT_FILES = {
    "core/caption_settings.py": "helps of settings, which are found on the page",
    "core/config.py": "helps of settings, which are found on the page",
    "core/dataset_settings.py": "helps of settings, which are found on the page",
    "api/openapi.py": "read by other programs",
    "api/gate.py": "the page's script says in words of its own that the login has ended",
    "hosts/standalone.py": "told to the terminal",
}
_SILENT_CALLS = {
    "Route": "describes itself to other programs",
    "TimeoutError": "goes to the log",
    "_log": "goes to the log",
    "_LOG": "goes to the log",
    "logging": "goes to the log",
}
_SILENT_SENTENCES = {
    "Send it as application/json.": "told to other programs",
    "There is no such file.": "told to a browser that looks for the script, the style or a language",
    "Give the path of a .safetensors LoRA.": "told to the terminal",
    "Give the folder that `lora-train train` printed first.": "told to the terminal",
    "There is none yet.": "told to the terminal",
    "Train Tools is training on this card. Stop or pause it in the Train Tools tab, or wait for its end.": (
        "the WebUI shows it with the error's name, in one text"
    ),
}
_SENTENCE = re.compile(r"[A-Z].* .*[.!?]")


def _silent_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Docstrings, pieces of texts with values, and what calls of `_SILENT_CALLS` are given."""
    for node in ast.walk(tree):
        inner = node.func if isinstance(node, ast.Call) else None
        while isinstance(inner, ast.Attribute | ast.Call):
            inner = inner.value if isinstance(inner, ast.Attribute) else inner.func
        is_silent_call = isinstance(inner, ast.Name) and inner.id in _SILENT_CALLS
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_silent_call or is_docstring or isinstance(node, ast.JoinedStr):
            yield from ast.walk(node)


@pytest.fixture(scope="session")
def told_sentences() -> set[str]:
    """Every sentence without a value that the program holds, but for those that no person at the page meets."""
    found: set[str] = set()
    for path in sorted(path for name in _TELLERS for path in (*(_CORE / name).rglob("*.py"), _CORE / name)):
        if path.suffix != ".py" or path.relative_to(_CORE).as_posix() in _SILENT_FILES:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        silent = set(_silent_nodes(tree))
        texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in silent)
        found |= {text for text in texts if isinstance(text, str) and _SENTENCE.fullmatch(text)}
    assert _SILENT_SENTENCES.keys() <= found, "not in the program any more"
    return found - _SILENT_SENTENCES.keys()
