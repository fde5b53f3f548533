"""The languages are complete: their keys are the texts that the page can show, no fewer and no more."""

from __future__ import annotations

import ast
import json
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio")

import gradio as gr

from lora_train.app import App
from lora_train.app.snapshot import Selection
from lora_train.core.errors import TrainToolsError
from lora_train.core.preset_files import purpose
from lora_train.core.purposes import PURPOSES
from lora_train.core.workspace import Workspace
from lora_train.hosts import webui
from lora_train.ui import tab
from lora_train.ui.panels import captions, project

pytestmark = pytest.mark.compat

ROOT = Path(__file__).parents[3]
LOCALIZATIONS = ROOT / "localizations"
LANGUAGES = ("ja_JP", "zh_CN")
TELLERS = ("TrainToolsError", *(error.__name__ for error in TrainToolsError.__subclasses__()), "Failed", "Note")
"""Whose texts a person at the page reads."""
NAMES = {"Train Tools", "LoRA", "VAE", "BLIP", "WD14 tagger", "WD14 tagger (ViT)", "Python", "PyTorch"}
"""Words that are the same in every language, and so are no keys."""
DROPDOWNS_OF_WORDS = (
    *("train_tools_dataset_caption_action", "train_tools_dataset_multicrop_objective", "train_tools_caption_policy"),
    *("train_tools_captions_mode", "train_tools_captions_order", "train_tools_captions_scope"),
    *("train_tools_captions_edit", "train_tools_train_base_model"),
)
"""Whose choices are words; those of the others are names from papers and programs."""
MAKERS_OF_WORDS = ("words", "badge", "post_button", "error_panel")
"""Functions of the views whose first argument is a text."""
COUNTERS = ("counted", "counted_html")
"""Those that take a number, and a text for one and for many."""
NO_SENTENCES = {
    "--any: belongs to --filter",
    "--compare: write the other command after it, as in `--compare -- python theirs.py`",
    "--count, --compare: give one of them",
    "--auth: write it as user:password, both not empty",
    "--model: say what it is, by --with wd14 or --with blip",
    "--version: pictures from --images go to v1; leave one of the two out",
    "--with none: no captions are written, so nothing else can be said of them",
    "prompt: give at least one",
    "base_model (Train base model): none was chosen; give a checkpoint or 'demo'.",
}
"""Messages that are told to the terminal alone, in its style."""
PICTOGRAPHS_AMONG_LETTERS = "ℹ‼⁉↔〰〽◽◾"
"""Pictographs that Unicode does not count as `So`, with which they share that WebUIs never translate them."""


class Option:
    """A setting of the host, which shows what is told of it in brackets."""

    def __init__(self, default: Any, label: str, section: tuple[str, str]) -> None:
        self.shown = {label, section[1]}

    def info(self, text: str) -> Option:
        self.shown.add(f"({text})")
        return self

    def needs_reload_ui(self) -> Option:
        return self


def host_words() -> set[str]:
    """The host's tab and our section of its settings."""
    found = {"Train Tools"}
    opts = SimpleNamespace(add_option=lambda name, option: found.update(option.shown))
    shared = SimpleNamespace(OptionInfo=Option, opts=opts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(webui, "host_module", lambda name: shared)
        webui.register_settings()
    return found


def component_words(app: App, page_words: Callable[[str], set[str]]) -> set[str]:
    """What the page's components show, whatever they are filled with later."""
    found: set[str] = set()
    for block in tab.build(app, token="", localize=True).blocks.values():
        found |= {getattr(block, name, None) or "" for name in ("label", "info", "placeholder")}
        if isinstance(block, gr.Button):
            found.add(str(block.value))
        if isinstance(block, gr.HTML):
            found |= page_words(str(block.value))
        if getattr(block, "elem_id", None) in DROPDOWNS_OF_WORDS:
            choices: list[Any] = block.choices
            assert choices
            found |= {choice if isinstance(choice, str) else choice[0] for choice in choices}
    found |= set[str]().union(*(edit.ways for edit in captions._EDITS.values()))  # a list for each thing to do
    return found | page_words(project._hint_html(Selection("project")))


@pytest.fixture(scope="module")
def shown(
    tmp_path_factory: pytest.TempPathFactory,
    rendered_states: dict[str, str],
    script_words: set[str],
    page_words: Callable[[str], set[str]],
) -> set[str]:
    """Every text that a language has to translate."""
    app = App(Workspace(tmp_path_factory.mktemp("workspace")))
    live_words = set[str]().union(*(page_words(html) for html in rendered_states.values()))
    texts = live_words | script_words | host_words() | component_words(app, page_words)
    return {text.strip() for text in texts if any(letter.isalpha() for letter in text)}


def preset_sentences() -> set[str]:
    """What our presets tell of themselves and of every value."""
    found: set[str] = set()
    for name in PURPOSES:
        preset = purpose(name)
        parts = [preset.settings, *preset.families.values()]
        found |= {preset.about, *(choice.why for part in parts for choice in part.values())}
    return found


def entries(language: str) -> list[tuple[str, str]]:
    text = (LOCALIZATIONS / f"{language}.json").read_text(encoding="utf-8")
    return json.loads(text, object_pairs_hook=lambda pairs: pairs)


def test_texts_of_every_kind_are_found(shown: set[str]) -> None:
    expected = {
        *("Create Project", "Manage", "Learning rate and optimizer", "How fast it learns"),
        *("Width", "prepend", "Small demo model", "Stop and save", "Time left", "Move up", "The caption is saved."),
        *("Workspace folder", "Stop at once? The steps since the last saved state are lost.", "Begin Train"),
        *("only where empty", "Maximize area", "Remove repeated tags", "regular expression in captions"),
        *("No captions", "What is to describe pictures that have no caption?", "The WebUI's BLIP", "A to Z"),
        *("Undo takes back:", "captions would change", "with so many more", "must be mended", "Split oversized images"),
    }
    assert {text for text in expected if not any(other.startswith(text) for other in shown)} == set()


def test_every_text_of_the_views_is_rendered(shown: set[str]) -> None:
    """What no rendered state shows would be missed in all languages."""
    texts: set[str] = set()
    for path in (ROOT / "lora_train" / "ui").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = _words_of_call(call) if isinstance(call, ast.Call) else []
            texts |= {node.value for part in parts for node in ast.walk(part) if _is_text(node)}
    assert len(texts) > 100
    assert {"captions changed.", "Download again", "Tags by frequency", "worth a look"} <= texts
    assert sorted(text for text in texts - shown if any(letter.isalpha() for letter in text)) == []


def _words_of_call(call: ast.Call) -> list[ast.expr]:
    """The arguments that a person reads."""
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    if name in COUNTERS:
        return call.args[1:]
    options = [option.value for option in call.keywords if option.arg in ("done", "confirm", "name")]
    return [call.args[0], *options] if name in MAKERS_OF_WORDS else []


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_sentences_of_every_kind_are_found(told_sentences: set[str]) -> None:
    expected = {
        *("The dataset is being updated already.", "Refresh the page.", "Press Refresh to see those there are."),
        "There are no pictures yet: drop some on Upload Dataset, then press Update Dataset.",  # a problem
        "The worker process ended without a word (killed, or out of memory).",  # set, not raised
        "Download the file again.",  # of one line and a variable
        "The checkpoint has no VAE.",  # noticed by the worker
        "Some pictures look blurred.",  # found by the health check
        "Set Caption device to cpu.",  # by a captioner
    }
    assert expected - told_sentences == set()


def test_errors_are_told_in_sentences() -> None:
    """What an error is given as it stands must look like a sentence, or no language would be asked for it."""
    told: set[str] = set()
    for path in (ROOT / "lora_train").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in TELLERS:
                parts = (part for argument in call.args for part in getattr(argument, "elts", [argument]))
                told |= {part.value for part in parts if _is_text(part) and " " in part.value}
    assert len(told) > 50
    assert {text for text in told if not (text[0].isupper() and text.endswith("."))} == NO_SENTENCES


def test_findings_are_told_in_fixed_sentences(told_sentences: set[str]) -> None:
    """Titles and remedies of the health check: values stand beside them, so that languages can translate them."""
    told: set[str] = set()
    for path in (ROOT / "lora_train").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Finding":
                parts = [option.value for option in call.keywords if option.arg in ("title", "remedy")]
                nodes = [node for part in parts for node in ast.walk(part)]
                assert not any(isinstance(node, ast.JoinedStr) for node in nodes)
                told |= {node.value for node in nodes if _is_text(node)}
    assert len(told) > 30
    assert told - told_sentences == set()


def test_sentences_stand_where_they_are_translated(rendered_states: dict[str, str]) -> None:
    """Each in a text node of its own, of a class that the page's script does not skip."""
    told = {
        "failed": ("The card ran out of memory.", "Switch on gradient checkpointing."),
        "update failed": ("The disk is full.", "Make room."),
        "impossible": ("Choose a base model.", "Learning rate: 7 is not 0 to 1."),
        "error": ("There is no project Cat.", "Press Refresh."),
        "foreign": ("The card is busy with Dog v2.",),
        "with notes": ("2 pictures are smaller than 512 px.",),
        "model refused": ("flux.safetensors is not a Stable Diffusion checkpoint.",),
    }
    for state, sentences in told.items():
        for sentence in sentences:
            assert f'<span class="train-tools-sentence">{sentence}</span>' in rendered_states[state]


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_is_missing_and_nothing_is_left_over(language: str, shown: set[str], told_sentences: set[str]) -> None:
    keys = {key for key, _ in entries(language)}
    wanted = (shown | told_sentences | preset_sentences()) - NAMES
    assert sorted(wanted - keys) == [], "not translated"
    assert sorted(keys - wanted) == [], "shown nowhere"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_entry_is_a_translation_that_hosts_can_use(language: str) -> None:
    pairs = entries(language)
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    assert twice == []
    for key, text in pairs:
        assert key == key.strip()
        assert text == text.strip() != ""
        assert text != key
        assert not any(unicodedata.category(letter) == "So" or letter in PICTOGRAPHS_AMONG_LETTERS for letter in key)


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_end_as_in_english(language: str) -> None:
    for key, text in entries(language):
        assert text.endswith("。") == key.endswith("."), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_translation_is_another_key(language: str) -> None:
    """It would be translated a second time when the page is drawn again."""
    pairs = dict(entries(language))
    assert [text for text in pairs.values() if text in pairs] == []
