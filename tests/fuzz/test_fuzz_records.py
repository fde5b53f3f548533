"""Records in JSON: of other releases, with wrong types, odd numbers and texts, damaged, or made to do harm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from lora_train.app.version_settings import (
    caption_settings,
    dataset_settings,
    effective_of,
    grid_settings,
    sweep_settings,
    train_settings,
)
from lora_train.core import events as ev
from lora_train.core import specs
from lora_train.core.cards import activation_text, card_bytes, merged_card, read_card
from lora_train.core.config import TrainSettings
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.errors import TrainToolsError
from lora_train.core.grid_settings import GridSettings
from lora_train.core.grids import axes, picture_count
from lora_train.core.hash_cache import HashCache
from lora_train.core.jobs import JobFolder, StatusReader
from lora_train.core.judgement import Choice, Judged, Judgement
from lora_train.core.limits import Limits, read_limits
from lora_train.core.model_folders import detect_folder
from lora_train.core.original import read_selection, read_settings
from lora_train.core.preset_files import Choice as PresetChoice
from lora_train.core.preset_files import Preset, preset_bytes, read_preset
from lora_train.core.recommendation import best_of
from lora_train.core.records import write_json
from lora_train.core.settings import check_settings
from lora_train.core.sweep_record import SweepRecord, SweepRun, read_sweep, write_sweep
from lora_train.core.trash import Trash, Trashed
from lora_train.core.workspace import ProjectInfo, VersionInfo, Workspace
from lora_train.data.caption_history import History, moved, read_history, with_step
from lora_train.data.captioning import read_changes, record_path
from lora_train.data.facts import read_facts
from lora_train.data.manifest import Made, Manifest, gone_from, read_manifest
from lora_train.launch.queue import JobQueue
from lora_train.publish import read_record


def require_told(problems: list[str]) -> None:
    assert all(problem.strip() and len(problem) < 600 for problem in problems), [problem[:80] for problem in problems]
    msgspec.json.encode(problems)


def _version(folder: Path) -> Callable[[], None]:
    version = Workspace(folder).find_version("p", "v")

    def look() -> None:
        for read in (train_settings, dataset_settings, caption_settings, grid_settings, sweep_settings):
            msgspec.json.encode(read(version))
        effective, problems = effective_of(version)
        require_told([*effective.problems, *problems])
        with version.changing() as info:
            info.created += 1
        assert version.info().created == info.created or info.created != info.created

    return look


def _projects(folder: Path) -> Callable[[], None]:
    def look() -> None:
        workspace = Workspace(folder)
        for project in workspace.projects():
            project.write_info(project.info())
            project.versions()

    return look


def _original(folder: Path) -> Callable[[], None]:
    def look() -> None:
        from lora_train.core import original

        original._read_settings.cache_clear()
        found = read_settings(folder)
        msgspec.json.encode(found)
        read_selection(folder)

    return look


def _status(folder: Path) -> Callable[[], None]:
    def look() -> None:
        job = JobFolder(folder)
        reader = StatusReader(job)
        msgspec.json.encode(reader.read())
        msgspec.json.encode(reader.curve(100))
        reader.validations()

    return look


def _spec(folder: Path) -> Callable[[], None]:
    def look() -> None:
        spec = JobFolder(folder).read_spec()
        msgspec.json.encode(spec)
        if isinstance(spec, specs.GridSpec):
            axes(spec), picture_count(spec)

    return look


def _sweep(folder: Path) -> Callable[[], None]:
    def look() -> None:
        if record := read_sweep(folder):
            record.present()
            write_sweep(folder, record)

    return look


def _preset(folder: Path) -> Callable[[], None]:
    def look() -> None:
        preset, problems = read_preset((folder / "preset.json").read_bytes())
        require_told(problems)
        assert read_preset(preset_bytes(preset))[0] == preset
        for family in ("sd1", "sdxl", "small"):
            _, wrong = check_settings(preset.values(family), TrainSettings())
            require_told(wrong)

    return look


def _history(folder: Path) -> Callable[[], None]:
    def look() -> None:
        history = read_history(folder / "history.json")
        for direction in ("undo", "redo"):
            if found := moved(history, direction, {"a.png": "b, c", "b.png": ""}):
                msgspec.json.encode(found)

    return look


def _trash(folder: Path) -> Callable[[], None]:
    entry = folder / "trash" / "entry"

    def look() -> None:
        entry.mkdir(parents=True, exist_ok=True)
        (entry / "from.json").write_bytes((folder / "from.json").read_bytes())
        (entry / "kept.txt").write_text("kept")
        try:
            places = Trash(folder / "trash", folder).restore("entry")
        finally:
            outside = [path for path in folder.parent.iterdir() if path != folder]
            assert not outside, f"something was put outside of the workspace: {outside}"
        assert all(".." not in place.parts for place in places)

    return look


def _card(folder: Path) -> Callable[[], None]:
    def look() -> None:
        content = (folder / "card.json").read_bytes()
        if (card := read_card(content)) is not None:
            merged, _ = merged_card(card, {"activation text": "x", "preferred weight": 0.8}, {})
            card_bytes(merged)
        activation_text("", {"ss_tag_frequency": content.decode("utf-8", "replace"), "ss_dataset_dirs": "{}"})

    return look


def _diffusers(folder: Path) -> Callable[[], None]:
    (folder / "unet").mkdir(exist_ok=True)

    def look() -> None:
        content = (folder / "model_index.json").read_bytes()
        (folder / "unet" / "config.json").write_bytes(content)
        msgspec.json.encode(detect_folder(folder))

    return look


def _judgement(folder: Path) -> Callable[[], None]:
    def look() -> None:
        (folder / "a.safetensors").touch()
        msgspec.json.encode(best_of(JobFolder(folder), ["a.safetensors"]))

    return look


def _simple(read: Callable[[Path], Any]) -> Callable[[Path], Callable[[], None]]:
    return lambda folder: lambda: read(folder)


_TRAIN = TrainSettings(preview_prompts=("a",), optimizer_args=("betas=0.9,0.99",))
_EVENTS: tuple[ev.Event, ...] = (
    ev.Started(pid=1, total_steps=10, epochs=1, step=0),
    ev.Step(1, 1, 0.5, 1e-4, 0.1),
    ev.Validated(1, 0.5, 0.6),
    ev.Saved("a.safetensors", 5, 1),
    ev.Note("warning", "x"),
    ev.Phase("x", 1, 2),
    ev.Failed("E", "m"),
    ev.Paused(3),
    ev.Finished(10, {"a": 1}),
)
_JUDGED = Judged(lora="a.safetensors", weight=1.0, likeness=0.5, samples=("s.png",), copies=(0.1,))
_GRID = specs.GridSpec(loras=("a.safetensors",), grid=GridSettings(prompt="x"), settings=_TRAIN)
_STEP = with_step(History(), "Add tags", "x", {"a.png": "b"}, {"a.png": "b, c"})

FILES: dict[str, tuple[str, Any, Callable[[Path], Callable[[], None]]]] = {
    "version": (
        "projects/p/versions/v/version.json",
        VersionInfo("v", 1.0, train=msgspec.to_builtins(_TRAIN), dataset=msgspec.to_builtins(DatasetSettings())),
        _version,
    ),
    "project": ("projects/p/project.json", ProjectInfo("p", 1.0, "style"), _projects),
    "train job": (
        "job.json",
        specs.TrainSpec(name="a", dataset="d", dataset_fingerprint="f", trash="t", settings=_TRAIN),
        _spec,
    ),
    "grid job": ("job.json", _GRID, _spec),
    "merge job": ("job.json", specs.MergeSpec(loras=("a",), weights=(1.0,), out="o"), _spec),
    "events": ("events.jsonl", list(_EVENTS), _status),
    "sweep": ("sweep.json", SweepRecord(1.0, [SweepRun("t", "l", {"rank": 8}, 10)]), _sweep),
    "preset": ("preset.json", Preset(name="p", settings={"rank": PresetChoice(8, "why")}), _preset),
    "captions' history": ("history.json", _STEP, _history),
    "trash": ("from.json", Trashed("x", {"kept.txt": "back/kept.txt"}), _trash),
    "card": ("card.json", {"description": "d", "activation text": "a", "preferred weight": 1, "x": {"y": 2}}, _card),
    "diffusers folder": (
        "model_index.json",
        {"_class_name": "StableDiffusionPipeline", "in_channels": 4, "block_out_channels": [320], "hidden_act": "gelu"},
        _diffusers,
    ),
    "judgement": (
        "judgement.json",
        Judgement(rows=(_JUDGED,), lora="a.safetensors", reason="r"),
        _judgement,
    ),
    "choice": ("choice.json", Choice(lora="a", weight=1.0), _simple(lambda folder: best_of(JobFolder(folder), ["a"]))),
    "limits": ("limits.json", Limits(1, 2.0), _simple(read_limits)),
    "published": ("published.json", {"loras": {}, "private_use": True}, _simple(read_record)),
    "manifest": (
        "processed/.made.json",
        Manifest({"a.png": Made("a.png", "c")}, gone={"b.png": Made("b.png", "c")}),
        _simple(lambda folder: gone_from(read_manifest(folder), folder)),
    ),
    "facts": (".facts.json", {}, _simple(read_facts)),
    "queue": (
        "queue.json",
        {"running": "jobs/a", "waiting": ["jobs/b", "../x"], "beside": {"1": ["jobs/c", 0]}},
        _simple(
            lambda folder: (JobQueue(folder).running(), JobQueue(folder).waiting(), JobQueue(folder).all_running())
        ),
    ),
    "hashes": (
        "hashes.json",
        {"/a": {"size_bytes": 1, "mtime_ns": 2, "hashes": {"sha": "x"}}},
        _simple(lambda folder: HashCache(folder / "hashes.json").get(folder / "hashes.json", "x", lambda: "y")),
    ),
    "original": (
        "train_config.json",
        {"train_num_epochs": 20, "train_learning_rate": "0.0001,1", "sd_script_args": "--seed=3", "preview_width": 512},
        _original,
    ),
    "selection": ("train_tools_config.json", {"select_project": "p", "select_version": "v"}, _original),
    "caption record": ("record", [], _simple(lambda folder: read_changes(JobFolder(folder)))),
}


@pytest.mark.parametrize("what", FILES)
def test_files(
    tmp_path: Path,
    guard: Any,
    share: Callable[[int], int],
    odd: Any,
    damaged: Callable[[bytes, Random], bytes],
    what: str,
) -> None:
    random, folder = Random(what), tmp_path / "workspace"
    place, sample, reader = FILES[what]
    path = record_path(JobFolder(folder)) if place == "record" else folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    valid = json.loads(msgspec.json.encode(sample))
    look = reader(folder)
    for _ in range(share(1_500)):
        if path.suffix == ".jsonl":
            lines = [json.loads(msgspec.json.encode(random.choice(_EVENTS))) for _ in range(random.randrange(1, 8))]
            content = b"\n".join(odd.json_bytes(odd.spoilt(line, random), random) for line in lines) + b"\n"
        else:
            content = odd.json_bytes(odd.spoilt(valid, random), random)
        path.write_bytes(damaged(content, random) if random.random() < 0.3 else content)
        guard(look)


DEEP = b'{"a":' * 50_000
HARMFUL: dict[str, bytes] = {
    "deep": DEEP + b"1" + b"}" * 50_000,
    "deep, not closed": DEEP,
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep in what is not known": b'{"name":"x","created":1,"unknown":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep in what may be anything": b'{"name":"x","created":1,"train":{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}}",
    "a number of a million digits": b'{"name":"x","created":' + b"9" * 1_000_000 + b"}",
    "an exponent": b'{"name":"x","created":1e999999}',
    "one key twice": b'{"name":"x","name":"y","created":1,"created":2}',
    "a key of a megabyte": b'{"name":"x","created":1,"train":{"' + b"a" * 2**20 + b'":1}}',
    "a value of a megabyte": b'{"name":"x","created":1,"train":{"rank":"' + b"a" * 2**20 + b'"}}',
    "many unknown keys": json.dumps({"name": "x", "created": 1, "train": {f"k{n}": n for n in range(50_000)}}).encode(),
    "not finite": b'{"name":"x","created":NaN,"train":{"learning_rate":Infinity}}',
    "half a surrogate pair": b'{"name":"\\ud800","created":1,"train":{"trigger_word":"\\udc00"}}',
    "bytes that are no text": bytes(range(256)) * 10,
    "zeros": bytes(10_000),
    "nothing": b"",
    "null": b"null",
}


@pytest.mark.parametrize("what", FILES)
def test_harmful_files(tmp_path: Path, guard: Any, what: str) -> None:
    folder = tmp_path / "workspace"
    place, _, reader = FILES[what]
    path = record_path(JobFolder(folder)) if place == "record" else folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    look = reader(folder)
    for content in HARMFUL.values():
        path.write_bytes(content + (b"\n" if path.suffix == ".jsonl" else b""))
        guard(look)


def test_a_damaged_version_is_set_aside_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    version = Workspace(tmp_path).project("p").version("v")
    path = version.path / "version.json"
    path.write_bytes(HARMFUL["deep in what may be anything"])
    version.info()
    assert path.with_name("version.json.damaged").read_bytes() == HARMFUL["deep in what may be anything"]


def test_what_another_release_wrote(tmp_path: Path, guard: Any) -> None:
    """Newer: settings and kinds that are not known here are left out, the others stay."""
    version = Workspace(tmp_path).project("p").version("v")
    written = {"name": "v", "created": 1.0, "from_the_future": [1], "train": {"rank": 32, "new_setting": {"a": 1}}}
    (version.path / "version.json").write_text(json.dumps(written))
    assert train_settings(version).rank == 32
    job = JobFolder(tmp_path)
    job.spec_path.write_text('{"kind": "a kind of tomorrow", "settings": {}}')
    assert isinstance(guard(job.read_spec), TrainToolsError)
    write_json(tmp_path / "limits.json", ProjectInfo("x", 1.0))
    assert read_limits(tmp_path) == Limits()
