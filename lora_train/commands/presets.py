"""`lora-train presets`: those for a purpose with their reasons, and a person's own, kept and shared."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from lora_train.commands.arguments import add_command, add_group, add_version, app_of, selection_of
from lora_train.commands.console import Result, tell
from lora_train.core.errors import ConfigError
from lora_train.core.files import write_bytes
from lora_train.core.purposes import MOST_PRESET_BYTES, PRESET_FAMILIES


def add_commands(commands: Any) -> None:
    """Put the commands of this file among the others."""
    group = add_group(commands, "presets", "settings for a purpose: list, show, save, rename, delete, import, export")
    add_command(group, "list", _list, "list the presets of Train Tools and your own")
    show = add_command(group, "show", _show, "show every value of a preset, and why it is that")
    show.add_argument("--family", choices=PRESET_FAMILIES, default="sd1", help="of base models (default sd1)")
    save = add_command(group, "save", _save, "keep the settings of a version under a name of your own")
    rename = add_command(group, "rename", _rename, "give a preset of your own another name")
    export = add_command(group, "export", _export, "write a preset into a file for others; there is no path in it")
    delete = add_command(group, "delete", _delete, "move a preset of your own to the trash")
    for command in (show, save, rename, export, delete):
        command.add_argument("preset", metavar="PRESET")
    add_version(save)
    rename.add_argument("new_name", metavar="NEW_NAME")
    export.add_argument("--out", metavar="FILE", help="default: the preset's name in this folder")
    import_ = add_command(group, "import", _import, "keep a preset that somebody made")
    import_.add_argument("file", metavar="FILE")


def _list(options: argparse.Namespace) -> Result:
    entries = app_of(options).presets.list()
    if not options.json:
        for entry in entries:
            told = entry.problem or entry.about or "Your own."
            print(f"{entry.name}  {told}".rstrip())
    return {"presets": msgspec.to_builtins(entries)}


def _show(options: argparse.Namespace) -> Result:
    details = app_of(options).presets.show(options.preset, options.family)
    if not options.json:
        print(f"{details.name} for {details.family_label}. {details.about}".rstrip())
        for row in details.rows:
            print(f"  {row.name:24} {value_text(row.value):12} {row.why}".rstrip())
    return msgspec.to_builtins(details)


def value_text(value: Any) -> str:
    """As `--set` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


def _save(options: argparse.Namespace) -> Result:
    app = app_of(options)
    entry = app.presets.save(options.preset, *selection_of(app, options))
    tell(f"Saved as {entry.name}. Base model, paths, trigger word and prompts are no part of it.")
    return {"preset": entry.name}


def _rename(options: argparse.Namespace) -> Result:
    return {"preset": app_of(options).presets.rename(options.preset, options.new_name).name}


def _export(options: argparse.Namespace) -> Result:
    source = app_of(options).presets.file_path(options.preset)
    target = Path(options.out) if options.out else Path(source.name)
    if target.exists():
        raise ConfigError([f"--out: {target} exists already; give the name of a new file"])
    write_bytes(target, source.read_bytes())
    if not options.json:
        print(target)
    return {"file": str(target)}


def _delete(options: argparse.Namespace) -> Result:
    undo = app_of(options).presets.delete(options.preset)
    tell(f"{undo.what} is in the trash.")
    return {"preset": undo.what, "trash": undo.entry}


def _import(options: argparse.Namespace) -> Result:
    path = Path(options.file)
    if not path.is_file():
        raise ConfigError([f"{path} is not a file"])
    with path.open("rb") as stream:
        taken = app_of(options).presets.take_in(path.name, stream.read(MOST_PRESET_BYTES + 1))
    for problem in taken.problems:
        tell(f"Left out: {problem}.")
    if not options.json:
        print(taken.name)
    return msgspec.to_builtins(taken)
