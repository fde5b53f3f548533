"""The worker process: `python -m lora_train.worker JOB_DIR` does one job and writes what happens into its folder.

With `--processes N` it starts others of its kind on this machine, with which it shares a training; those that
`accelerate launch` starts, on one machine or on several, find each other (see `engine.team`).
Exit codes: 0 finished, stopped or paused; 1 failed (the last event says why); 2 not a job.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from lora_train.core import events as ev
from lora_train.core.errors import JobError, TrainToolsError
from lora_train.core.failures import failure_of, refusal_of
from lora_train.core.jobs import JobFolder, RequestedEnd
from lora_train.core.places import Place, place_for
from lora_train.core.specs import (
    BenchSpec,
    CaptionSpec,
    CheckSpec,
    CompareSpec,
    CountSpec,
    DatasetSpec,
    DownloadSpec,
    GridSpec,
    JobSpec,
    JudgeSpec,
    MergeSpec,
    PreviewSpec,
    ProofSpec,
    RegularisationSpec,
    SamplesSpec,
    TrainSpec,
)

if TYPE_CHECKING:
    from lora_train.engine.reporting import Reporter
    from lora_train.engine.team import Team

_OnDevice = (
    TrainSpec
    | PreviewSpec
    | SamplesSpec
    | GridSpec
    | JudgeSpec
    | ProofSpec
    | RegularisationSpec
    | CompareSpec
    | BenchSpec
    | CountSpec
    | MergeSpec
)


def main(arguments: list[str]) -> int:
    """Do the job in the folder that is named."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    try:
        place = place_for(options.processes, os.environ)
        job = _job(options.job, place)
        spec = job.read_spec()
        if not isinstance(spec, TrainSpec):  # others don't share their work
            place = None
        lock = job.lock() if place is None or place.is_first else nullcontext()
    except TrainToolsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OSError as error:
        return _refused(error)
    if lock is None:
        sys.stderr.write("Another worker is at this job.\n")
        return 2
    _isolate(spec)
    with lock:
        if place is None:
            return _work_alone(spec, job)
        from lora_train.engine.team import Team

        team = Team(place, job)
        return _work(spec, job, team.events, team)


def _work_alone(spec: JobSpec, job: JobFolder) -> int:
    try:
        return _work(spec, job, ev.EventWriter(job.events_path), None)
    except OSError as error:  # the events themselves can't be written
        return _refused(error)


def _refused(error: OSError) -> int:
    """The log is all that is left to tell it."""
    refused = refusal_of(error)
    sys.stderr.write(f"{refused.message} {refused.hint}\n")
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lora_train.worker")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("job", nargs="?", help="the others of a team may be told by its first process")
    return parser


def _job(path: str | None, place: Place | None) -> JobFolder:
    """Raises JobError where none is named to a process that nobody tells."""
    if path is not None:
        return JobFolder(Path(path))
    if place is None or place.is_first:
        raise JobError("No job was named.")
    from lora_train.engine.processes import job_of_the_first

    return JobFolder(job_of_the_first())


def _work(spec: JobSpec, job: JobFolder, events: ev.EventWriter, team: Team | None) -> int:
    """Do it, together with others where there is a team; returns the exit code."""
    failed = None
    events.write(ev.Started(pid=os.getpid()))
    try:
        if team is not None:
            team.begin()
        events.write(_do(spec, job, events, team))
    except RequestedEnd:
        events.write(ev.Stopped(step=0))
    except Exception as error:  # the border of the process: nothing may end without a last event
        failed = _failure(error)
        if team is not None:
            failed = team.cause_of(error, failed)
        events.write(failed)
        traceback.print_exc()
    if team is not None:
        team.leave(failed)
    events.close()
    return int(failed is not None)


def _isolate(spec: JobSpec) -> None:
    """No network but for a download, and none of the packages that are known to break others here.

    A peft that is too new for the host's diffusers makes even `import UNet2DConditionModel` fail; we don't use it.
    """
    if not isinstance(spec, DownloadSpec):
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ["DIFFUSERS_VERBOSITY"] = "error"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    sys.modules["peft"] = None  # type: ignore[assignment]


def _do(spec: JobSpec, job: JobFolder, events: ev.EventWriter, team: Team | None) -> ev.Event:
    """Run the job of this kind and return its last event. Those that need no torch, or only for a BLIP, come first."""
    match spec:
        case DatasetSpec():
            from lora_train.caption.together import open_captioner
            from lora_train.data.update import update_dataset

            captioner = open_captioner(spec.captions)
            return ev.Finished(result=update_dataset(spec, job, events, captioner=captioner))
        case CaptionSpec():
            from lora_train.caption.together import open_captioner
            from lora_train.data.captioning import write_captions

            return ev.Finished(result=write_captions(spec, job, open_captioner(spec.plan), events))
        case DownloadSpec():
            from lora_train.caption.downloads import download

            return ev.Finished(result=download(spec, job, events))
        case CheckSpec():
            from lora_train.data.facts import check_pictures

            return ev.Finished(result=check_pictures(spec, job, events))
        case MergeSpec():
            return _do_on_device(spec, job, events, team)
        case _:
            from lora_train.engine.libraries import import_libraries

            import_libraries()
            return _do_on_device(spec, job, events, team)


def _do_on_device(spec: _OnDevice, job: JobFolder, events: ev.EventWriter, team: Team | None) -> ev.Event:
    """The jobs that compute with torch, whose import takes seconds."""
    from lora_train.engine.reporting import Reporter

    with Reporter(job, events, hears_requests=team is None or team.is_first) as report:
        match spec:
            case TrainSpec():
                from lora_train.engine.train import train

                ending, step = train(spec, job, report, team)
                if ending == "stopped":
                    return ev.Stopped(step=step)
                return ev.Paused(step=step) if ending == "paused" else ev.Finished(step=step)
            case PreviewSpec():
                from lora_train.engine.preview_job import preview

                return ev.Finished(result=preview(spec, report))
            case SamplesSpec():
                from lora_train.engine.preview_job import draw_samples

                return ev.Finished(result=draw_samples(spec, job, report))
            case GridSpec():
                from lora_train.engine.grid_job import draw_grid

                return ev.Finished(result=draw_grid(spec, job, report))
            case JudgeSpec():
                from lora_train.engine.judging import judge

                return ev.Finished(result=judge(spec, job, report))
            case ProofSpec():
                from lora_train.engine.proof import prove

                return ev.Finished(result=prove(spec, job, report))
            case RegularisationSpec():
                from lora_train.engine.regularisation import draw_regularisation

                return ev.Finished(result=draw_regularisation(spec, job, report))
            case CompareSpec():
                from lora_train.engine.compare import compare

                return ev.Finished(result=compare(spec, job, report))
            case BenchSpec() | CountSpec():
                return ev.Finished(result=_measured(spec, job, report))
            case MergeSpec():
                from lora_train.engine.merging import merge

                return ev.Finished(result=merge(spec, report))


def _measured(spec: BenchSpec | CountSpec, job: JobFolder, report: Reporter) -> dict[str, object]:
    if isinstance(spec, CountSpec):
        from lora_train.engine.counted_step import count

        return count(spec, report)
    from lora_train.engine.bench import bench

    return bench(spec, job, report)


def _failure(error: Exception) -> ev.Failed:
    """The last event of a job that failed, in the words of the person who reads it."""
    if not isinstance(error, TrainToolsError) and sys.modules.get("torch") is not None:
        from lora_train.engine.devices import is_out_of_memory, out_of_memory

        if is_out_of_memory(error):
            error = out_of_memory(error)
    return failure_of(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
