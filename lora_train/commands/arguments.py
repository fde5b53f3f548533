"""Arguments that commands share: settings, the workspace, jobs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from lora_train.commands.console import Result
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError
from lora_train.core.jobs import JobFolder
from lora_train.core.settings import SettingField, setting_fields

if TYPE_CHECKING:
    from lora_train.app import App

_DEFAULT_WORKSPACE = Path("outputs") / "train_tools"


class Parser(argparse.ArgumentParser):
    """Bad arguments become a ConfigError, so that `--json` tells of them too."""

    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            message += "; one that begins with - is written with =, for example --weights=-1,1"
        raise ConfigError([f"{message} (see `{self.prog} --help`)"])


def numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError([f"{name}: {text!r} is not a comma list of numbers"]) from None


def add_command(commands: Any, name: str, run: Callable[[argparse.Namespace], Result], help_: str) -> Any:
    command = commands.add_parser(
        name, help=help_, description=help_, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="a JSON object as the last line of output")
    command.add_argument("--workspace", metavar="DIR", default=str(_DEFAULT_WORKSPACE), help="where projects are kept")
    return command


def add_group(commands: Any, name: str, help_: str) -> Any:
    """A command that has commands of its own; returns where to put them."""
    group = commands.add_parser(name, help=help_, description=help_)
    return group.add_subparsers(title="commands", required=True, metavar="COMMAND")


def add_version(command: Any, *, required: bool = True) -> None:
    """Which project and version the command is for; see `selection_of`."""
    command.add_argument("--name", required=required, metavar="PROJECT", help="name of the project, in any script")
    command.add_argument("--version", default="v1", help="name of the version (default v1)")


def selection_of(app: App, options: argparse.Namespace) -> tuple[str, str]:
    """The ids of the project and version that were named. Raises WorkspaceError where there is none."""
    found = app.projects.find(options.name, options.version)
    return found.project, found.version


def add_settings(
    command: Any, fields: Sequence[SettingField], schemas: Sequence[type[msgspec.Struct]] = (TrainSettings,)
) -> None:
    """Flags for these settings, and `--set` for every setting of the schemas."""
    for field in fields:
        command.add_argument(
            f"--{field.name.replace('_', '-')}",
            dest=f"setting_{field.name}",
            metavar="X",
            help=f"{field.label}: {field.limits} (default {field.default!r}). {field.help}".replace("%", "%%"),
        )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any setting of the list below; lists of texts are given one by one",
    )
    command.epilog = "settings for --set:\n" + "\n".join(
        f"  {field.name:28} {field.limits} (default {field.default!r})"
        for schema in schemas
        for field in setting_fields(schema)
    )


def fields_of(*names: str) -> list[SettingField]:
    return [field for field in setting_fields() if field.name in names]


def values_of(options: argparse.Namespace) -> dict[str, str]:
    """The settings that were given, as text. Each `--set` of a list adds one text to it; else the last one counts."""
    lists = {field.name for field in setting_fields() if field.kind == "texts"}
    given = {
        name.removeprefix("setting_"): value
        for name, value in vars(options).items()
        if name.startswith("setting_") and value is not None
    }
    for pair in options.set:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError([f"--set {pair}: write it as key=value"])
        name = key.strip().replace("-", "_")
        given[name] = f"{given[name]}\n{value}" if name in lists and name in given else value
    return given


def app_of(options: argparse.Namespace) -> App:
    from lora_train.app import App  # after the arguments are known to be right: `--help` stays quick
    from lora_train.core.workspace import Workspace

    return App(Workspace(Path(options.workspace)))


def job_of(options: argparse.Namespace) -> JobFolder:
    return JobFolder(Path(options.job_dir).absolute())
