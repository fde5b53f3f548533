"""`lora-train train` and what belongs to it: the demo, following and steering a training, previews, the page."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lora_train.commands.arguments import add_command, add_settings, app_of, fields_of, job_of, numbers, values_of
from lora_train.commands.console import Result, follow, line_of, result_of, run_job, tell
from lora_train.core.errors import ConfigError
from lora_train.core.jobs import JobFolder
from lora_train.core.places import place_for
from lora_train.core.purposes import PURPOSES
from lora_train.core.settings import setting_fields
from lora_train.core.specs import TrainSpec

if TYPE_CHECKING:
    from lora_train.app import App, PlannedTrain
    from lora_train.app.fit_snapshot import Fit
    from lora_train.core.memory import MemoryFacts

_PRESET_HELP = (
    f"settings for a purpose: {', '.join(PURPOSES)}, or one of your own; flags win over it (see `presets list`)"
)


def add_commands(commands: Any) -> None:
    """Put the commands of this file among the others."""
    add_command(commands, "demo", _demo, "train a small LoRA with what ships here, and show what it learned")

    train = add_command(commands, "train", _train, "train a LoRA")
    train.add_argument(
        "--images", metavar="DIR", help="pictures, with captions beside them; without it, what `dataset update` made"
    )
    train.add_argument("--name", required=True, help="name of the project and of the LoRA, in any script")
    train.add_argument("--version", help="of the project, for a training without --images (default v1)")
    train.add_argument("--preset", metavar="NAME", default="", help=_PRESET_HELP)
    train.add_argument("--publish-to", metavar="DIR", help="copy the LoRA here as a card (models/Lora)")
    _add_processes(train)
    add_settings(train, [field for field in setting_fields() if field.basic])

    status = add_command(commands, "status", _status, "tell where a job is")
    status.add_argument("--follow", action="store_true", help="until it ends")
    stop = add_command(commands, "stop", _stop, "finish the step, save LoRA and state, end")
    pause = add_command(commands, "pause", _pause, "finish the step, save the state, free the device")
    resume = add_command(commands, "resume", _resume, "go on from the last state")
    _add_processes(resume)
    for command in (status, stop, pause, resume):
        command.add_argument("job_dir", metavar="JOB_DIR", help="the folder that `train` printed first")

    preview = add_command(commands, "preview", _preview, "draw pictures with a LoRA")
    preview.add_argument("lora", metavar="LORA")
    preview.add_argument("--prompt", action="append", required=True, help="may be given several times")
    preview.add_argument("--weights", default="0,0.6,1", help="LoRA weights, comma list")
    preview.add_argument("--out", required=True, metavar="PNG")
    add_settings(preview, fields_of("base_model", "clip_skip", "precision"))

    ui = add_command(commands, "ui", _ui, "open the page: everything by hand and eye, in a browser")
    ui.add_argument("--port", type=int, default=7870)
    ui.add_argument("--host", default="127.0.0.1", help="address to listen at; others than 127.0.0.1 need --auth")
    ui.add_argument("--share", action="store_true", help="also through gradio's public tunnel; needs --auth")
    ui.add_argument("--auth", metavar="USER:PASSWORD", help="ask for this login")
    ui.add_argument("--models", metavar="DIR", help="offer the checkpoints below this folder")
    ui.add_argument("--lora-dir", metavar="DIR", help="publish finished LoRAs here (a WebUI's models/Lora)")

    inspect = add_command(commands, "inspect", _inspect, "tell what is in a checkpoint or LoRA")
    inspect.add_argument("file", metavar="FILE")


def _add_processes(command: Any) -> None:
    command.add_argument(
        "--processes",
        metavar="N",
        type=int,
        default=1,
        help="so many processes share every batch, one for each card of this machine (default 1); a training may go "
        "on with another number. For several machines: `accelerate launch -m lora_train train ...` on each",
    )


def _demo(options: argparse.Namespace) -> Result:
    app = app_of(options)
    started = time.monotonic()
    plan = app.plan_demo()
    print(plan.job.path, flush=True)
    tell(f"Teaching the small demo model the concept 'sks': {plan.total_steps} steps.")
    trained = run_job(app, plan.job)
    if trained["state"] != "finished":
        return trained
    comparison = run_job(app, app.plan_demo_comparison(plan.job))
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
    app = app_of(options)
    if _is_helper(options):
        return {"exit_code": app.help_others()}
    plan = _plan(app, options)
    print(plan.job.path, flush=True)
    for problem in plan.problems:
        tell(f"Left out: {problem}")
    for warning in plan.warnings:
        tell(warning)
    if plan.held_out:
        tell(f"Held out to measure the training: {plan.held_out} of the pictures.")
    if (fit := app.training.fit_of(plan.job)) is not None:
        tell(_fit_text(fit))
    tell(f"{plan.total_steps} steps. Ctrl-C stops and saves.")
    return _run_and_publish(app, plan.job, options)


def _fit_text(fit: Fit) -> str:
    """`Needs about 6.1 GB of 8.0 GB (RTX 3070), with gradient checkpointing of all blocks.`"""
    from lora_train.core.memory import measures_text
    from lora_train.core.numbers import gigabytes_text

    sizes = f"Needs about {gigabytes_text(fit.needed_bytes)} of {gigabytes_text(fit.device_bytes)} ({fit.device})"
    more = measures_text(fit.plan, beyond=fit.asked)
    if fit.fits:
        return f"{sizes}, with {more}." if more else f"{sizes}."
    if not fit.is_tried:
        return f"{sizes}: it may run out of memory{'' if fit.on_cpu else ', since Fit to my GPU is off'}."
    return f"{sizes}{f', even with {more}' if more else ''}. It is tried all the same: this is an estimate."


def _plan(app: App, options: argparse.Namespace) -> PlannedTrain:
    values = values_of(options)
    publish_to = Path(options.publish_to) if options.publish_to else None
    if options.images is None:
        version = options.version or "v1"
        return app.plan_version_train(
            name=options.name, version=version, values=values, publish_to=publish_to, preset=options.preset
        )
    if options.version is not None:
        raise ConfigError(["--version: pictures from --images go to v1; leave one of the two out"])
    return app.plan_train(
        name=options.name,
        images=Path(options.images),
        values=values,
        publish_to=publish_to,
        preset=options.preset,
    )


def _resume(options: argparse.Namespace) -> Result:
    app = app_of(options)
    if _is_helper(options):
        return {"exit_code": app.help_others()}
    job = job_of(options)
    print(job.path, flush=True)
    return _run_and_publish(app, job, options)


def _is_helper(options: argparse.Namespace) -> bool:
    """Whether `accelerate launch` has started this, and another process of it plans and tells."""
    place = place_for(options.processes, os.environ)
    return place is not None and not place.is_first


def _run_and_publish(app: App, job: JobFolder, options: argparse.Namespace) -> Result:
    result = run_job(app, job, options.processes)
    spec = job.read_spec()
    if isinstance(spec, TrainSpec) and spec.settings.judge_when_finished and result["state"] == "finished":
        judged = run_job(app, app.judging.plan(job))
        result["judged"] = judged["result"]
        if judged["state"] != "finished":
            tell(f"The LoRAs could not be judged, so the last one counts. {judged['message']}")
    result["memory"] = msgspec.to_builtins(app.memory(job))
    published = app.publish_result(job)
    result["published"] = str(published) if published else ""
    if not options.json:
        for lora in result["loras"]:
            print(lora)
        if published:
            print(f"published: {published}")
    return result


def _status(options: argparse.Namespace) -> Result:
    app, job = app_of(options), job_of(options)
    status = follow(app, job, None) if options.follow else app.status(job)
    result = msgspec.to_builtins(status)
    result["exit_code"] = int(options.follow and status.state == "failed")
    memory = app.memory(job)
    result["memory"] = msgspec.to_builtins(memory)
    if not options.json:
        print(line_of(status))
        if memory is not None:
            print(_memory_text(memory))
        for name in status.saved:
            print(job.path / name)
    return result


def _memory_text(memory: MemoryFacts) -> str:
    from lora_train.core.memory import measures_text
    from lora_train.core.numbers import gigabytes_text

    fitting = memory.fitting
    peak = f", at most {gigabytes_text(fitting.peak_bytes)}" if fitting is not None and fitting.peak_bytes else ""
    return f"memory: {measures_text(memory.plan) or 'as it is set'}{peak}"


def _stop(options: argparse.Namespace) -> Result:
    return _request(options, "stop")


def _pause(options: argparse.Namespace) -> Result:
    return _request(options, "pause")


def _request(options: argparse.Namespace, what: Any) -> Result:
    app, job = app_of(options), job_of(options)
    app.request(job, what)
    status = follow(app, job, None)
    app.wait_for_end(job)
    if not options.json:
        print(line_of(status))
    return result_of(job, status)


def _preview(options: argparse.Namespace) -> Result:
    app = app_of(options)
    weights = numbers("weights", options.weights)
    job = app.plan_preview(
        lora=Path(options.lora),
        prompts=tuple(options.prompt),
        weights=weights,
        out=Path(options.out),
        values=values_of(options),
    )
    result = run_job(app, job)
    if result["state"] == "finished" and not options.json:
        print(result["result"]["grid"])
    return result


def _inspect(options: argparse.Namespace) -> Result:
    from lora_train.core.inspection import describe

    inspection = app_of(options).inspect(Path(options.file))
    if not options.json:
        print(describe(inspection))
    return msgspec.to_builtins(inspection)


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
