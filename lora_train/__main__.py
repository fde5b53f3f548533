"""The command line: thin words around `App`. Progress goes to standard error, results to standard output."""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from lora_train import __version__
from lora_train.core.errors import ConfigError, TrainToolsError
from lora_train.core.jobs import JobFolder, JobStatus, StatusReader
from lora_train.core.settings import SettingField, setting_fields

if TYPE_CHECKING:
    from lora_train.app import App
    from lora_train.launch.launcher import Worker

_POLL_S = 0.3
_BAR_WIDTH = 24
_SILENCE_S = 30
_DEFAULT_WORKSPACE = Path("outputs") / "train_tools"

Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 (failed, the reason was printed) or 2 (bad arguments)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")  # names in any script, also on Windows
    try:
        options = _parser().parse_args(arguments)
        result: Result = options.run(options)
    except TrainToolsError as error:
        _say_error(error)
        result = {
            "error": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
            "exit_code": 2 if isinstance(error, ConfigError) else 1,
        }
    except KeyboardInterrupt:
        _tell("Interrupted.")
        result = {"error": "Interrupted", "message": "Interrupted.", "exit_code": 1}
    except OSError as error:
        _tell(f"Error: {error.strerror or error}: {error.filename or ''}")
        result = {"error": "OSError", "message": str(error), "exit_code": 1}
    exit_code = int(result.pop("exit_code", 0))
    if as_json:
        print(json.dumps(result, ensure_ascii=False, default=str))
    return exit_code


# --- the commands ---


def _demo(options: argparse.Namespace) -> Result:
    app = _app(options)
    started = time.monotonic()
    plan = app.plan_demo()
    print(plan.job.path, flush=True)
    _tell(f"Teaching the small demo model the concept 'sks': {plan.total_steps} steps.")
    trained = _run(app, plan.job)
    if trained["state"] != "finished":
        return trained
    comparison = _run(app, app.plan_demo_comparison(plan.job))
    measured = comparison["result"]
    lora = Path(trained["loras"][-1])
    result = {
        **{key: comparison[key] for key in ("state", "message", "hint", "exit_code")},
        "job": str(plan.job.path),
        "lora": str(lora),
        "seconds": round(time.monotonic() - started, 1),
        **measured,
    }
    if measured and not options.json:
        _print_demo(result)
    return result


def _print_demo(result: Result) -> None:
    print(
        f"LoRA        {result['lora']}\n"
        f"Before and after, as pictures\n            {result['grid']}\n"
        f"Likeness    {result['likeness_before']:.2f} before, {result['likeness_after']:.2f} after "
        f"(the training pictures among themselves: {result['likeness_of_pictures']:.2f})\n"
        f"Kept        {result['retention']:.0%} of ordinary prompts are still drawn right\n"
        f"Took        {result['seconds']:.0f} s\n\n"
        "Next: train your own, with your pictures and your base model:\n"
        "  lora-train train --images FOLDER --base-model model.safetensors --name NAME "
        "--publish-to path/to/models/Lora\n"
        "(The demo's learning rate of 0.004 is for its very small model alone; leave yours as it is.)"
    )


def _train(options: argparse.Namespace) -> Result:
    app = _app(options)
    plan = app.plan_train(
        name=options.name,
        images=Path(options.images),
        values=_values(options),
        publish_to=Path(options.publish_to) if options.publish_to else None,
    )
    print(plan.job.path, flush=True)
    for problem in plan.problems:
        _tell(f"Left out: {problem}")
    _tell(f"{plan.total_steps} steps. Ctrl-C stops and saves.")
    return _run_and_publish(app, plan.job, options)


def _resume(options: argparse.Namespace) -> Result:
    app = _app(options)
    job = _job(options)
    print(job.path, flush=True)
    return _run_and_publish(app, job, options)


def _run_and_publish(app: App, job: JobFolder, options: argparse.Namespace) -> Result:
    result = _run(app, job)
    published = app.publish_result(job)
    result["published"] = str(published) if published else ""
    if not options.json:
        for lora in result["loras"]:
            print(lora)
        if published:
            print(f"published: {published}")
    return result


def _status(options: argparse.Namespace) -> Result:
    app, job = _app(options), _job(options)
    status = _follow(app, job, None) if options.follow else app.status(job)
    result = msgspec.to_builtins(status)
    result["exit_code"] = int(options.follow and status.state == "failed")
    if not options.json:
        print(_line(status))
        for name in status.saved:
            print(job.path / name)
    return result


def _stop(options: argparse.Namespace) -> Result:
    return _request(options, "stop")


def _pause(options: argparse.Namespace) -> Result:
    return _request(options, "pause")


def _request(options: argparse.Namespace, what: Any) -> Result:
    app, job = _app(options), _job(options)
    app.request(job, what)
    status = _follow(app, job, None)
    app.wait_for_end(job)
    if not options.json:
        print(_line(status))
    return _result(job, status)


def _preview(options: argparse.Namespace) -> Result:
    app = _app(options)
    weights = _numbers("weights", options.weights)
    job = app.plan_preview(
        lora=Path(options.lora),
        prompts=tuple(options.prompt),
        weights=weights,
        out=Path(options.out),
        values=_values(options),
    )
    result = _run(app, job)
    if result["state"] == "finished" and not options.json:
        print(result["result"]["grid"])
    return result


def _inspect(options: argparse.Namespace) -> Result:
    from lora_train.core.inspection import describe

    inspection = _app(options).inspect(Path(options.file))
    if not options.json:
        print(describe(inspection))
    return msgspec.to_builtins(inspection)


def _bench(options: argparse.Namespace) -> Result:
    app = _app(options)
    job = app.plan_bench(values=_values(options), pictures=options.pictures, steps=options.steps)
    result = _run(app, job)
    if not options.json:
        for key, value in result["result"].items():
            print(f"{key:24} {value:.4g}" if isinstance(value, float) else f"{key:24} {value}")
    return {**result, **result["result"]}


def _ui(options: argparse.Namespace) -> Result:
    from lora_train.app import App
    from lora_train.core.workspace import Workspace
    from lora_train.hosts.standalone import LOCAL_HOSTS, Standalone, serve

    is_local = options.host in LOCAL_HOSTS and not options.share
    auth = _login(options.auth) if options.auth else None
    problems = [
        f"{flag}: {folder} is not a folder"
        for flag, folder in (("--models", options.models), ("--lora-dir", options.lora_dir))
        if folder and not Path(folder).is_dir()
    ]
    if not is_local and auth is None:
        problems.append("--auth: others could reach the page; give --auth user:password")
    if problems:
        raise ConfigError(problems)
    host = Standalone(
        models=Path(options.models) if options.models else None,
        lora_dir=Path(options.lora_dir).absolute() if options.lora_dir else None,
        is_local=is_local,
    )
    app = App(Workspace(Path(options.workspace)), host)
    serve(app, port=options.port, share=options.share, auth=auth, host=options.host)
    return {}


def _login(text: str) -> tuple[str, str]:
    user, _, password = text.partition(":")
    if not user or not password:
        raise ConfigError(["--auth: write it as user:password, both not empty"])
    return user, password


# --- running and watching a job ---


def _run(app: App, job: JobFolder) -> Result:
    """Run a job in the foreground. Ctrl-C asks it to stop and save; a second one ends it at once."""
    worker = app.start(job)
    asked = False
    while True:
        try:
            status = _follow(app, job, worker)
            worker.wait()
            break
        except KeyboardInterrupt:
            if asked:
                worker.kill()
            else:
                asked = True
                job.request("stop")
                _tell("\nStopping after this step, and saving. Ctrl-C again ends it at once.")
    if status.state == "failed":
        _tell(f"Failed: {status.message}\n{status.hint}".rstrip())
    elif status.state in ("stopped", "paused"):
        _tell(f'Go on with: lora-train resume "{job.path}"')
    return _result(job, status)


def _result(job: JobFolder, status: JobStatus) -> Result:
    return {
        "state": status.state,
        "job": str(job.path),
        "step": status.step,
        "total_steps": status.total_steps,
        "loss": status.loss,
        "loras": [str(job.path / name) for name in status.saved],
        "message": status.message,
        "hint": status.hint,
        "notes": status.notes,
        "result": status.result,
        "exit_code": int(status.state == "failed"),
    }


def _follow(app: App, job: JobFolder, worker: Worker | None) -> JobStatus:
    """Show a job's progress until it ends. Gives up at once on one that doesn't run."""
    reader = StatusReader(job)
    shown = len(reader.read().notes) if worker else 0  # those of earlier starts were read when they came
    line = ""
    while True:
        status = app.status(job, worker, reader)
        for note in status.notes[shown:]:
            _show("", line)
            _tell(note)
        shown = len(status.notes)
        if status.state not in ("running", "waiting") or (status.state == "waiting" and not worker):
            _show(_line(status), line, end="\n")
            return status
        line = _show(_line(status), line)
        time.sleep(_POLL_S)


def _line(status: JobStatus) -> str:
    """One line that says where a job is."""
    if status.state != "running" or status.phase != "training":
        done = f" {status.phase_done}/{status.phase_total}" if status.phase_total else ""
        if status.state == "running":
            return f"{status.phase or 'starting'}{done}"
        at = f", step {status.step}/{status.total_steps}" if status.total_steps else ""
        return f"{status.state}{at}" + (f": {status.message}" if status.message else "")
    filled = _BAR_WIDTH * status.step // max(1, status.total_steps)
    parts = [
        f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {status.step}/{status.total_steps}",
        f"epoch {status.epoch}/{status.epochs}",
    ]
    if status.loss is not None and status.s_per_step is not None and status.eta_s is not None:
        minutes, seconds = divmod(round(status.eta_s), 60)
        parts += [
            f"loss {status.loss:.4f}",
            f"{status.s_per_step:.2f} s/step",
            f"{minutes}:{seconds:02} left",
        ]
    if status.silent_s > _SILENCE_S:
        parts.append(f"no sign of life for {status.silent_s:.0f} s")
    return "  ".join(parts)


def _show(line: str, before: str, end: str = "") -> str:
    """Write a progress line over the last one; where nobody watches, only when its first word changes."""
    if sys.stderr.isatty():
        sys.stderr.write("\r" + line.ljust(len(before)) + end)
        sys.stderr.flush()
    elif line and (end or line.split(" ")[0] != before.split(" ")[0]):
        _tell(line)
    return line


def _tell(message: str) -> None:
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def _say_error(error: TrainToolsError) -> None:
    _tell(f"Error: {error.message}")
    if error.hint:
        _tell(error.hint)


# --- arguments ---


class _Parser(argparse.ArgumentParser):
    """Bad arguments become a ConfigError, so that `--json` tells of them too."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError([f"{message} (see `{self.prog} --help`)"])


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError([f"{name}: {text!r} is not a comma list of numbers"]) from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lora-train", description="Make a LoRA from a folder of pictures.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    _add(commands, "demo", _demo, "train a small LoRA with what ships here, and show what it learned")

    train = _add(commands, "train", _train, "train a LoRA")
    train.add_argument("--images", required=True, metavar="DIR", help="pictures, with captions beside them")
    train.add_argument("--name", required=True, help="name of the project and of the LoRA, in any script")
    train.add_argument("--publish-to", metavar="DIR", help="copy the LoRA here as a card (models/Lora)")
    _add_settings(train, [field for field in setting_fields() if field.basic])

    status = _add(commands, "status", _status, "tell where a job is")
    status.add_argument("--follow", action="store_true", help="until it ends")
    stop = _add(commands, "stop", _stop, "finish the step, save LoRA and state, end")
    pause = _add(commands, "pause", _pause, "finish the step, save the state, free the device")
    resume = _add(commands, "resume", _resume, "go on from the last state")
    for command in (status, stop, pause, resume):
        command.add_argument("job_dir", metavar="JOB_DIR", help="the folder that `train` printed first")

    preview = _add(commands, "preview", _preview, "draw pictures with a LoRA")
    preview.add_argument("lora", metavar="LORA")
    preview.add_argument("--prompt", action="append", required=True, help="may be given several times")
    preview.add_argument("--weights", default="0,0.6,1", help="LoRA weights, comma list")
    preview.add_argument("--out", required=True, metavar="PNG")
    _add_settings(preview, _fields("base_model", "clip_skip", "precision"))

    ui = _add(commands, "ui", _ui, "open the page: everything by hand and eye, in a browser")
    ui.add_argument("--port", type=int, default=7870)
    ui.add_argument("--host", default="127.0.0.1", help="address to listen at; others than 127.0.0.1 need --auth")
    ui.add_argument("--share", action="store_true", help="also through gradio's public tunnel; needs --auth")
    ui.add_argument("--auth", metavar="USER:PASSWORD", help="ask for this login")
    ui.add_argument("--models", metavar="DIR", help="offer the checkpoints below this folder")
    ui.add_argument("--lora-dir", metavar="DIR", help="publish finished LoRAs here (a WebUI's models/Lora)")

    inspect = _add(commands, "inspect", _inspect, "tell what is in a checkpoint or LoRA")
    inspect.add_argument("file", metavar="FILE")

    bench = _add(commands, "bench", _bench, "measure the speed and memory of training steps")
    bench.add_argument("--pictures", type=int, default=20, help="how many pictures are encoded first")
    bench.add_argument("--steps", type=int, default=5, help="how many steps are timed")
    _add_settings(bench, _fields("base_model", "resolution", "batch_size", "precision", "rank", "optimizer"))
    return parser


def _add(commands: Any, name: str, run: Callable[[argparse.Namespace], Result], help_: str) -> Any:
    command = commands.add_parser(
        name, help=help_, description=help_, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="a JSON object as the last line of output")
    command.add_argument("--workspace", metavar="DIR", default=str(_DEFAULT_WORKSPACE), help="where projects are kept")
    return command


def _add_settings(command: Any, fields: Sequence[SettingField]) -> None:
    """Flags for these settings, and `--set` for every setting of the schema."""
    for field in fields:
        command.add_argument(
            f"--{field.name.replace('_', '-')}",
            dest=f"setting_{field.name}",
            metavar="X",
            help=f"{field.label}: {field.limits} (default {field.default!r}). {field.help}".replace("%", "%%"),
        )
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of the list below"
    )
    command.epilog = "settings for --set:\n" + "\n".join(
        f"  {field.name:28} {field.limits} (default {field.default!r})" for field in setting_fields()
    )


def _fields(*names: str) -> list[SettingField]:
    return [field for field in setting_fields() if field.name in names]


def _values(options: argparse.Namespace) -> dict[str, str]:
    """The settings that were given, as text."""
    given = {
        name.removeprefix("setting_"): value
        for name, value in vars(options).items()
        if name.startswith("setting_") and value is not None
    }
    for pair in options.set:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError([f"--set {pair}: write it as key=value"])
        given[key.strip().replace("-", "_")] = value
    return given


def _app(options: argparse.Namespace) -> App:
    from lora_train.app import App  # after the arguments are known to be right: `--help` stays quick
    from lora_train.core.workspace import Workspace

    return App(Workspace(Path(options.workspace)))


def _job(options: argparse.Namespace) -> JobFolder:
    return JobFolder(Path(options.job_dir).absolute())


if __name__ == "__main__":
    sys.exit(main())
