"""The network of a run on its UNet and text encoders, and what trains it."""

from __future__ import annotations

import torch

from lora_train.engine import devices
from lora_train.engine.fast_unet import FastUnet
from lora_train.engine.memory import load_unet, take_plan
from lora_train.engine.network_protocol import PARTS
from lora_train.engine.networks import build_network
from lora_train.engine.optimizers import make_optimizer, make_schedule, optimizer_parameters
from lora_train.engine.recordings import Recordings
from lora_train.engine.run import Run
from lora_train.engine.saving import Snapshots
from lora_train.engine.scaling import LossScaler


def build_run_network(run: Run) -> None:
    """The network on the run's UNet (and text encoders), and what trains it."""
    settings, model = run.settings, run.model
    load_unet(run)
    run.network = build_network(settings, model, run.continued, trains_text=run.trains_text)
    run.network.attach()
    run.fast_unet = FastUnet(model.unet)
    if run.continued is not None:
        run.facts.network = run.continued.facts()
    parts = PARTS if run.trains_text else PARTS[:1]
    run.groups = run.network.flatten(parts, run.dtype)
    if run.processes is not None:
        run.processes.share([part.weights for part in run.groups.values()])
    run.recordings = Recordings()
    run.snapshots = Snapshots(run.device.torch)
    give_optimizer(run)
    take_plan(run, run.plan)


def give_optimizer(run: Run) -> None:
    """A new optimizer for the network that is there, with its schedule and loss scaling."""
    parameters = optimizer_parameters(run.settings, run.groups)
    run.optimizer = make_optimizer(run.settings, parameters, fused=devices.has_fused_optimizers(run.device))
    run.schedule = make_schedule(run.settings, run.optimizer, run.total_steps)
    run.scaler = LossScaler(run.device.torch, enabled=run.dtype == torch.float16)
