"""How a training is fitted to the card, and what makes it quick there: a part of its settings (see `core.config`)."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from lora_train.core.network_settings import NetworkSettings

BaseWeights = Literal["full", "int8", "fp8"]


class MemorySettings(NetworkSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is asked for; what a training then does is a `core.memory.MemoryPlan`."""

    fit_to_gpu: Annotated[
        bool,
        Meta(
            title="Fit to my GPU",
            description="Tries real steps first, and saves memory, one way after the other, only as far as it must.",
        ),
    ] = True
    base_weights: Annotated[
        BaseWeights,
        Meta(
            title="Base model weights",
            description="int8 and fp8 keep the frozen base model in half the memory; each layer is unpacked when it is "
            "used.",
        ),
    ] = "full"
    offload_share: Annotated[
        float,
        Meta(
            title="Offloaded share",
            description="How much of the base model waits in main memory, and is fetched while other layers compute.",
            ge=0.0,
            le=1.0,
        ),
    ] = 0.0
    cuda_graphs: Annotated[
        bool,
        Meta(
            title="CUDA graphs",
            description="Records a step once and replays it: up to three times as fast at small batches. What can't be "
            "recorded runs as usual.",
        ),
    ] = True
    compile_blocks: Annotated[
        bool,
        Meta(
            title="Compile blocks",
            description="torch.compile for every block, where Triton is installed: slow to start, then quicker.",
        ),
    ] = False
