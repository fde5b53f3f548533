"""`lora-train bench`: what training steps take here, what they ask of a GPU, and how another trainer compares."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from lora_train.commands.arguments import add_command, add_settings, app_of, fields_of, values_of
from lora_train.commands.console import Result, run_job, tell
from lora_train.core.errors import ConfigError

if TYPE_CHECKING:
    from lora_train.app import App

_WHAT_IS_COUNTED = """\
A kernel is a leaf ATen call other than views and metadata; attention, a convolution, its backward and a fused
optimizer step count one each. Bytes are what kernels read and write; peak is of tensors, weights included."""


def add_commands(commands: Any) -> None:
    """Put the commands of this file among the others."""
    bench = add_command(commands, "bench", _bench, "measure the speed and memory of training steps")
    bench.add_argument("--pictures", type=int, default=20, help="how many pictures are encoded first")
    bench.add_argument("--steps", type=int, default=5, help="how many steps are timed")
    bench.add_argument(
        "--count",
        action="store_true",
        help="count what a step of Stable Diffusion 1.5 and SDXL asks of a GPU; none is needed",
    )
    bench.add_argument(
        "--compare",
        action="store_true",
        help="run another trainer in turn with ours: `--compare -- COMMAND ...`, which prints its seconds per step",
    )
    bench.add_argument("--pairs", type=int, default=3, metavar="N", help="how often --compare runs both (default 3)")
    bench.add_argument(
        "--pattern",
        default="",
        metavar="REGEX",
        help="how --compare finds the other's seconds per step: the first group of the last match",
    )
    add_settings(bench, fields_of("base_model", "resolution", "batch_size", "precision", "rank", "optimizer"))


def _bench(options: argparse.Namespace) -> Result:
    app = app_of(options)
    if options.compare:
        if options.count:
            raise ConfigError(["--count, --compare: give one of them"])
        return _compare(app, options)
    if options.count:
        return _count(app, options)
    result = _measure(app, options)
    if not options.json:
        _print_values(result["result"])
    return {**result, **result["result"]}


def _measure(app: App, options: argparse.Namespace) -> Result:
    return run_job(app, app.plan_bench(values=values_of(options), pictures=options.pictures, steps=options.steps))


def _print_values(values: dict[str, Any]) -> None:
    for key, value in values.items():
        print(f"{key:24} {value:.4g}" if isinstance(value, float) else f"{key:24} {value}")


# --- counting ---


def _count(app: App, options: argparse.Namespace) -> Result:
    result = run_job(app, app.plan_count(values=values_of(options)))
    if not result["result"]:
        return result
    if not options.json:
        print(_WHAT_IS_COUNTED)
        for name, counted in result["result"].items():
            _print_count(name, counted)
    return {**result["result"], "exit_code": result["exit_code"]}


def _print_count(name: str, counted: dict[str, Any]) -> None:
    print(f"\n{name:<14}{'kernels':>9}{'GB moved':>11}{'TFLOP':>9}{'host syncs':>12}")
    for phase, work in {**counted["phases"], "all": counted}.items():
        print(
            f"{phase:<14}{work['kernels']:>9}{work['bytes_moved'] / 1e9:>11.3f}{work['flops'] / 1e12:>9.3f}"
            f"{work['host_syncs']:>12}"
        )
    print(f"Peak {counted['peak_bytes'] / 1e9:.2f} GB")
    for call, times in counted["waited_for"].items():
        print(f"The host waits {times} times for {call}")


# --- beside another trainer ---


def _compare(app: App, options: argparse.Namespace) -> Result:
    from lora_train.app.benching import OtherTrainer, compared, require_pairs

    require_pairs(options.pairs)
    other = OtherTrainer(options.other_command, options.pattern)
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, float]] = []
    for pair in range(1, options.pairs + 1):
        tell(f"Pair {pair} of {options.pairs}: ours")
        result = _measure(app, options)
        if not result["result"]:
            return result
        ours.append(result["result"])
        tell(f"Pair {pair} of {options.pairs}: theirs")
        theirs.append(other.run(tell))
    found = compared(ours, theirs)
    keys = ("device", "precision", "base_model", "resolution_px", "batch_size", "rank", "torch")
    answer = {**{key: ours[-1][key] for key in keys}, "theirs": other.command, **found}
    if not options.json:
        _print_values({key: value for key, value in answer.items() if not isinstance(value, (list, dict))})
        print(f"\n{_verdict(found['ratio'])}")
    return answer


def _verdict(ratio: float) -> str:
    return f"Ours is {ratio:.2f} times as fast." if ratio >= 1 else f"Theirs is {1 / ratio:.2f} times as fast."
