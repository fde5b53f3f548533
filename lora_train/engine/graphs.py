"""CUDA graphs: whether a run's steps can be recorded, and the recorder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from lora_train.core.events import Note
from lora_train.engine.recordings import FEWEST_REPLAYS, RUNS_BEFORE, Recordings
from lora_train.engine.reporting import Reporter

if TYPE_CHECKING:
    from lora_train.engine.run import Run


WAITS = "a part of the base model waits in main memory"
_RARE = "Batches that come up seldom run without CUDA graphs."


class CudaRecorder:
    """A `recordings.Recorder`. All graphs share one pool of memory: no two run at once, and none leaves anything in it.

    Work runs on the stream on which it is recorded, as torch's notes on CUDA graphs ask; so it also takes its memory
    from one place, which is handed back before a recording.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, work: Callable[[], torch.Tensor | None]) -> torch.Tensor | None:
        outer = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outer)
        try:
            with torch.cuda.stream(self._stream):
                return work()
        finally:  # also after an error: what comes next must not overtake what was begun
            outer.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        outer = torch.cuda.current_stream(self._stream.device)
        # The outer block: a capture that fails leaves its own stream the current one. Threads of ours may ask for
        # events meanwhile, hence "thread_local".
        try:
            with (
                torch.cuda.stream(outer),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                work()
        except Exception:
            self._end_allocation()
            raise
        return graph.replay

    def _end_allocation(self) -> None:
        """After a capture that CUDA broke off, torch before 2.13 goes on as if it were under way: from then on it
        refuses to hand memory back. After one that came to its end, it says that there is nothing to end.
        """
        for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):  # the second before 2.3
            end = getattr(torch._C, name, None)
            if end is not None:
                with suppress(Exception):
                    end(self._stream.device.index, self._pool)


def recordings_of(run: Run, report: Reporter) -> Recordings:
    """Of a run whose network and optimizer are there. Why nothing is recorded is told where a person may wonder."""
    device = run.device.torch

    def tell(message: str) -> None:
        report.events.write(Note("info", message))

    if not run.device.is_cuda or not run.settings.cuda_graphs:
        return Recordings()
    recordings = Recordings(CudaRecorder(device), device, tell)
    if reason := why_not(run):
        recordings.end(reason)
    return recordings


def tell_of_rare_shapes(run: Run, report: Reporter) -> None:
    """Steps that come up too seldom are never recorded; which those are is told before the first."""
    if not run.recordings.is_on:
        return
    pieces = run.own_parts(run.planner.batches(0))  # other epochs have about as many of each
    counted = Counter((piece.bucket, len(piece.views)) for piece in pieces)
    fewest = RUNS_BEFORE + FEWEST_REPLAYS
    rare = [shape for shape, count in sorted(counted.items()) if count * run.settings.epochs < fewest]
    if rare:
        told = ", ".join(f"{width} × {height} px × {views}" for (width, height), views in rare)
        report.events.write(Note("info", f"{_RARE}\n{told}"))


def why_not(run: Run) -> str:
    """What of a run can't be recorded, as a part of a sentence; "" where nothing speaks against it."""
    settings = run.settings
    if run.plan.offload_share:
        return WAITS
    if settings.network_dropout or settings.rank_dropout or settings.module_dropout:
        return "dropout is drawn anew for every layer"
    return ""
