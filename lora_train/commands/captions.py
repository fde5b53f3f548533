"""`lora-train caption` and `captions`: written by a model, edited many at once, and as they are trained."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from lora_train.commands.arguments import (
    add_command,
    add_group,
    add_settings,
    add_version,
    app_of,
    selection_of,
    values_of,
)
from lora_train.commands.console import Result, tell, watch_job
from lora_train.commands.datasets import captioners_text
from lora_train.core.caption_settings import CaptionPolicy, CaptionSettings
from lora_train.core.errors import ConfigError, JobError

if TYPE_CHECKING:
    from lora_train.app.captions import CaptionChange, EditResult, Operation, Scope, TrainedText

_PLACES = {"start": "start", "end": "end", "after-trigger": "after trigger"}
_WITHIN = {
    "tag": "tag",
    "text": "text",
    "tag-expression": "tag expression",
    "caption-expression": "caption expression",
}
_FILTER_HELP = (
    'tags that captions must have, between commas; -tag not, *text* anywhere, /regular expression/, "" those without '
    "text; what begins with a minus is written --filter=-tag"
)


def add_commands(commands: Any) -> None:
    """Put the commands of this file among the others."""
    caption = add_command(commands, "caption", _caption, "let a model write captions of the trained pictures")
    add_version(caption)
    caption.add_argument(
        "--with", dest="captioner", choices=("wd14", "blip", "none"), help="what writes them, from now on"
    )
    caption.add_argument("--policy", choices=get_args(CaptionPolicy), help="what becomes of captions there are, once")
    caption.add_argument(
        "--model", metavar="FOLDER", help="another model, from now on: a folder, or a name on the hub; needs --with"
    )
    caption.add_argument("--download", action="store_true", help="fetch the model first, if it is not here")
    caption.add_argument("files", nargs="*", metavar="FILE", help="only these pictures, as `dataset list` names them")
    add_settings(caption, [], (CaptionSettings,))

    captions = add_group(commands, "captions", "the captions of a version: list, show, edit, undo, redo")
    list_ = add_command(captions, "list", _list, "list captions, with their tokens")
    show = add_command(captions, "show", _show, "show exactly what a picture is trained on")
    edit = add_command(captions, "edit", _edit, "change many captions at once; one operation a call")
    undo = add_command(captions, "undo", _undo, "take the last edit back")
    redo = add_command(captions, "redo", _redo, "do again what was undone")
    for command in (list_, show, edit, undo, redo):
        add_version(command)
    for command in (list_, edit):
        command.add_argument("--filter", metavar="TEXT", help=_FILTER_HELP)
        command.add_argument("--any", action="store_true", help="one of the filter's tags is enough")
    show.add_argument("file", metavar="FILE", help="the picture, as `dataset list` names it")
    show.add_argument("--epoch", type=int, default=1, help="from 1 (default 1)")
    edit.add_argument("--dry-run", action="store_true", help="show before and after, and write nothing")
    _add_operations(edit)


def _add_operations(edit: Any) -> None:
    one = edit.add_mutually_exclusive_group(required=True)
    one.add_argument("--add", metavar="TAGS", help="tags between commas, where a caption lacks them")
    one.add_argument("--remove", metavar="TAGS", help="whole tags, between commas")
    one.add_argument("--replace", nargs=2, metavar=("FIND", "WITH"), help='WITH may be ""; see --within')
    one.add_argument("--prepend", metavar="TEXT")
    one.add_argument("--append", metavar="TEXT")
    one.add_argument("--sort", choices=("alphabet", "frequency", "length"))
    one.add_argument("--dedupe", action="store_true", help="each tag once, where it stands first")
    one.add_argument("--trigger-first", action="store_true", help="the trigger word in front")
    one.add_argument("--set-text", metavar="TEXT", help="the same caption for all")
    edit.add_argument("--at", choices=tuple(_PLACES), help="where --add puts them (default end)")
    edit.add_argument("--within", choices=tuple(_WITHIN), help="what --replace looks through (default tag)")


# --- captions by a model ---


def _caption(options: argparse.Namespace) -> Result:
    chosen = _chosen(options)
    app = app_of(options)
    ids = selection_of(app, options)
    app.settings.change(*ids, {**values_of(options), **chosen})
    if options.captioner == "none":
        app.captioning.answer("none")
        tell("From now on no captions are written. Choose wd14 or blip to change that.")
        return {"state": "finished", "result": {"captions": 0}}
    choices = app.captioning.choices(*ids)
    if choices.must_ask or (choices.answer == "none" and not (choices.uses or choices.problems)):
        raise JobError("Nothing is chosen to write captions.", captioners_text(choices))
    for model in app.captioning.absent_models(*ids) if options.download else ():
        tell(f"Downloading {model.name}.")
        downloaded = watch_job(app, app.captioning.download(model.name, model.kind))
        if downloaded["exit_code"]:
            return downloaded
    files = tuple(app.datasets.named(*ids, options.files))
    if uses := app.captioning.choices(*ids).uses:
        tell(f"Captions are written by: {', '.join(uses)}")
    result = watch_job(app, app.captioning.start(*ids, files, options.policy))
    if result["exit_code"] == 0 and not options.json:
        print(f"{result['result']['captions']} captions written, {result['result']['kept']} kept as they were")
    return result


def _chosen(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that `--with` and `--model` stand for: what is ticked on the page, and the model's folder."""
    captioner = options.captioner
    if captioner == "none" and (options.model or options.download or options.policy or options.files):
        raise ConfigError(["--with none: no captions are written, so nothing else can be said of them"])
    if captioner is None:
        if options.model:
            raise ConfigError(["--model: say what it is, by --with wd14 or --with blip"])
        return {}
    chosen: dict[str, Any] = {
        "use_wd14": captioner == "wd14",
        "use_blip": captioner == "blip",
        "use_deepbooru": False,
    }
    if options.model:
        from lora_train.core.captioners import is_hub_name

        is_name = is_hub_name(options.model)
        folder = Path(options.model).expanduser().absolute()  # a worker runs elsewhere
        if not is_name and not folder.is_dir():
            raise ConfigError(
                [f"--model: {options.model} is neither a folder nor a name on the hub: OWNER/NAME or OWNER/NAME@COMMIT"]
            )
        chosen[f"{captioner}_model"] = options.model if is_name else str(folder)
    return chosen


# --- captions by hand ---


def _list(options: argparse.Namespace) -> Result:
    app = app_of(options)
    mode = _mode(options)
    snapshot = app.captions.view(*selection_of(app, options), options.filter or "", mode)
    for problem in snapshot.problems:
        tell(problem)
    if not options.json:
        for row in snapshot.rows:
            tokens = f"  {row.tokens} tokens" if row.tokens is not None else ""
            cut = f", {row.cut_tokens} cut off" if row.cut_tokens else ""
            print(f"{row.file}{tokens}{cut}  {row.caption}")
    tell(f"{len(snapshot.rows)} of {snapshot.total} captions.")
    return msgspec.to_builtins(snapshot)


def _edit(options: argparse.Namespace) -> Result:
    operation, scope = operation_of(options), _scope(options)
    app = app_of(options)
    ids = selection_of(app, options)
    pictures = len(app.captions.in_scope(*ids, scope))
    if not pictures:
        tell("The filter lets no picture through." if options.filter else "There are no training pictures.")
    if options.dry_run:
        changes = app.captions.preview(*ids, operation, scope)
        if not options.json:
            _print_changes(changes)
        tell(f"{len(changes)} of {pictures} captions would change.")
        return {"pictures": pictures, "changes": msgspec.to_builtins(changes)}
    done = app.captions.edit(*ids, operation, scope)
    _print_done(done, options, f"{done.changed} of {pictures} captions changed")
    return {"pictures": pictures, **msgspec.to_builtins(done)}


def _undo(options: argparse.Namespace) -> Result:
    app = app_of(options)
    done = app.captions.undo(*selection_of(app, options))
    _print_done(done, options, f"undone in {done.changed} captions")
    return msgspec.to_builtins(done)


def _redo(options: argparse.Namespace) -> Result:
    app = app_of(options)
    done = app.captions.redo(*selection_of(app, options))
    _print_done(done, options, f"done again in {done.changed} captions")
    return msgspec.to_builtins(done)


def _print_done(done: EditResult, options: argparse.Namespace, outcome: str) -> None:
    for problem in done.problems:
        tell(problem)
    if not options.json:
        print(f"{done.what}{f' {done.detail}' if done.detail else ''}: {outcome}")


def _print_changes(changes: list[CaptionChange]) -> None:
    for change in changes:
        print(f"{change.file}\n    before: {change.before}\n    after:  {change.after}")


def operation_of(options: argparse.Namespace) -> Operation:
    """The one operation that was given. Raises ConfigError for an option of another one."""
    from lora_train.app.captions import Operation

    problems = ["--at: belongs to --add"] if options.at and options.add is None else []
    problems += ["--within: belongs to --replace"] if options.within and options.replace is None else []
    if problems:
        raise ConfigError(problems)
    given: dict[str, Any] = {}
    if options.add is not None:
        given = {"kind": "add", "tags": options.add, "place": _PLACES[options.at or "end"]}
    elif options.replace is not None:
        find, replacement = options.replace
        within = _WITHIN[options.within or "tag"]
        given = {"kind": "replace", "find": find, "replacement": replacement, "within": within}
    elif options.sort is not None:
        given = {"kind": "sort", "by": options.sort}
    elif options.remove is not None:
        given = {"kind": "remove", "tags": options.remove}
    elif options.dedupe or options.trigger_first:
        given = {"kind": "dedupe" if options.dedupe else "trigger first"}
    else:
        texts = {"prepend": options.prepend, "append": options.append, "set": options.set_text}
        kind = next(kind for kind, text in texts.items() if text is not None)
        given = {"kind": kind, "text": texts[kind]}
    return msgspec.convert(given, Operation)


def _scope(options: argparse.Namespace) -> Scope:
    from lora_train.app.captions import AllPictures, FilteredPictures

    mode = _mode(options)
    return AllPictures() if options.filter is None else FilteredPictures(options.filter, mode)


def _mode(options: argparse.Namespace) -> Any:
    if options.any and options.filter is None:
        raise ConfigError(["--any: belongs to --filter"])
    return "or" if options.any else "and"


# --- what is trained ---


def _show(options: argparse.Namespace) -> Result:
    app = app_of(options)
    ids = selection_of(app, options)
    (file,) = app.datasets.named(*ids, [options.file])
    told = app.captions.trained_text(*ids, file, options.epoch)
    if not told.is_exact:
        tell("The base model is not chosen yet; its size has a part in the order.")
    if not options.json:
        _print_text(told)
    return msgspec.to_builtins(told)


def _print_text(told: TrainedText) -> None:
    text = " ".join(chunk.text for chunk in told.plain.chunks)
    print(f"{told.file}, epoch {told.epoch}")
    print(f"Text      {text}")
    print(f"Tokens    {told.plain.token_count} of at most {told.max_tokens}")
    if told.plain.cut.text:
        print(f"Cut off   {told.plain.cut.text}")
    if told.left_out:
        print(f"Left out  {', '.join(told.left_out)}")
    if told.shuffled:
        print(f"In front  {told.fixed}")
        print(f"Shuffled  {', '.join(told.shuffled)}")
    if told.without_caption:
        print(f"Without   {told.without_caption} of {told.view_count} views have no caption")
    print(f"Views     {told.view_count} in this epoch")
    for view in told.views:
        print(f"{view.position + 1:8}  {view.text}{' (flipped)' if view.is_flipped else ''}")
