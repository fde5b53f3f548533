"""Everything that one training run works with, on the device before the loop needs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lora_train.core.conditioning import Conditioning
from lora_train.core.config import TrainSettings
from lora_train.core.hash_cache import HashCache
from lora_train.core.memory import MemoryPlan, Trial
from lora_train.core.specs import TrainSpec
from lora_train.data.epochs import Batch, Bucket, EpochPlanner, parts_of_at_most
from lora_train.engine import devices
from lora_train.engine.cache import LatentCache
from lora_train.engine.checkpoint_hashes import CheckpointHashes
from lora_train.engine.compiling import CompiledBlocks
from lora_train.engine.denoiser import SizeTable
from lora_train.engine.fast_unet import FastUnet
from lora_train.engine.flat import FlatPart
from lora_train.engine.gauge import Gauge
from lora_train.engine.loading import BaseModel
from lora_train.engine.masks import MaskCache
from lora_train.engine.metadata import RunFacts
from lora_train.engine.network_protocol import Network
from lora_train.engine.networks import Continued
from lora_train.engine.offload import Offload
from lora_train.engine.previews import PreviewTexts
from lora_train.engine.processes import Processes
from lora_train.engine.recordings import Recordings
from lora_train.engine.saving import Snapshots
from lora_train.engine.scaling import LossScaler
from lora_train.engine.texts import CachedTexts, TrainedTexts
from lora_train.engine.validation import HeldOut


class Run:
    """Everything one training run works with. Made by `prepare_run`; the loop is in `train`."""

    settings: TrainSettings
    trains_text: bool
    spec: TrainSpec
    device: devices.Device
    dtype: torch.dtype
    model: BaseModel
    network: Network
    continued: Continued | None
    planner: EpochPlanner
    conditioning: Conditioning
    latents: LatentCache
    sizes: SizeTable | None
    inpaint: dict[Bucket, torch.Tensor | None]
    masks: MaskCache | None
    held_out: HeldOut | None
    """What the run is measured with; None where no picture is held out."""
    texts: TrainedTexts | CachedTexts
    preview_texts: PreviewTexts | None
    groups: dict[str, FlatPart]
    """What is trained, by the part of the model."""
    optimizer: torch.optim.Optimizer
    schedule: Any
    scaler: LossScaler
    recordings: Recordings
    snapshots: Snapshots
    fast_unet: FastUnet
    alphas: torch.Tensor
    total_steps: int
    resolution_px: int
    dataset_fingerprint: str
    facts: RunFacts
    checkpoint_hashes: CheckpointHashes
    hashes: HashCache
    cache_dir: Path | None
    job_dir: Path
    plan: MemoryPlan
    tried: list[Trial]
    """Plans that this worker or an earlier one of the job found to fit or not."""
    gauge: Gauge | None
    """None where the run is not fitted to its device."""
    compiled: CompiledBlocks | None = None
    offload: Offload | None = None
    processes: Processes | None = None
    """Those that train together; None for a process on its own."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written."""
        return self.processes is None or self.processes.is_first

    def own_parts(self, group: Sequence[Batch]) -> Sequence[Batch]:
        """What this process computes of batches, in parts as the memory plan wants them."""
        mine = group if self.processes is None else [part for part in map(self.processes.part, group) if part.views]
        return [piece for batch in mine for piece in parts_of_at_most(batch, self.plan.views_at_once)]
