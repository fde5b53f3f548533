"""What the engine's front ends need of the program that they live in: a WebUI, or nothing at all."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.errors import ModelError

HostCaptioner = Literal["blip", "deepbooru"]


class BaseModelChoice(msgspec.Struct, frozen=True):
    """A checkpoint that the host offers: what it is called there, and where it is."""

    name: str
    path: str


class HostPicture(msgspec.Struct, frozen=True, kw_only=True):
    """A picture that the host is to draw, as its own txt2img would."""

    prompt: str
    """LoRA tags among it."""
    negative_prompt: str
    width_px: int
    height_px: int
    sampler: str
    """By the host's own name."""
    steps: int
    cfg_scale: float
    seed: int
    base_model: str
    """Path of a checkpoint that the host has in its list."""
    clip_skip: int = 1
    loras: tuple[str, ...] = ()
    """Paths of files for the tags that need not be in the host's LoRA folder; the stem of each is its name."""
    count: int = 1
    """Pictures of one batch, with the seeds `seed`, `seed` + 1 ..."""


class DeviceMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of a card, or of the machine, as far as it can be told from outside."""

    name: str
    """As its maker calls it."""
    total_bytes: int
    free_bytes: int
    on_cpu: bool = False


class Host(Protocol):
    """One WebUI, or the standalone page. Every method is quick, may be called from any thread and never raises."""

    name: str
    """For the person: "Automatic1111 v1.10.1", "Forge", "standalone"."""

    def base_models(self) -> list[BaseModelChoice]:
        """The checkpoints as the host lists them, without ours."""
        ...

    def refresh_base_models(self) -> None:
        """Look at the checkpoint folders again."""
        ...

    def lora_dir(self) -> Path | None:
        """Where LoRAs are published: the host's LoRA folder with our sub-folder; None where there is none."""
        ...

    def lora_root(self) -> Path | None:
        """The whole folder in which the host looks for LoRAs: no name may occur twice below it."""
        ...

    def auto_publish(self) -> bool:
        """Whether a finished train's last LoRA is published by itself."""
        ...

    def refresh_loras(self) -> None:
        """Make the host notice new and removed LoRA files."""
        ...

    def takes_paths(self) -> bool:
        """Whether a person at the page may name files of this machine (not when the page is open to others)."""
        ...

    def is_waiting_for_picture(self) -> bool:
        """Whether a training waits for the end of a picture that the host is making on the card."""
        ...

    def parked(self, device: str) -> AbstractContextManager[None]:
        """Frees the card for a worker on `device` ("auto", "cpu", "cuda" ...) while entered, and gives it back."""
        ...

    def card_memory(self) -> DeviceMemory | None:
        """Of the card that a worker would take, as free as it is without the host's own model; None: not known."""
        ...

    def samplers(self) -> tuple[str, ...]:
        """The samplers of its txt2img by their names; none where the host can't draw for us."""
        ...

    def draw(self, picture: HostPicture) -> list[Any]:
        """PIL pictures from its txt2img, each with its parameters in `info["parameters"]`.

        Waits until the host has drawn what it was asked for before.

        This and `open_captioner` are the calls that may raise: ModelError where the host can't draw it, JobError while
        a training has the card, RequestedEnd when a person interrupts it in the WebUI.
        """
        ...

    def loaded_base_model(self) -> Path | None:
        """The checkpoint that it has loaded, and draws with by itself; None where there is none."""
        ...

    def captioners(self) -> tuple[HostCaptioner, ...]:
        """The captioners that the host has itself."""
        ...

    def absent_captioners(self) -> tuple[HostCaptioner, ...]:
        """Those of them that the host would have to download first, which it does at their first use, unasked."""
        ...

    def open_captioner(
        self, kinds: tuple[HostCaptioner, ...], settings: CaptionSettings
    ) -> AbstractContextManager[Any]:
        """Loads some of its captioners while entered; gives a `data.captioner.Captioner`.

        Entering waits for the picture that the host is making, and may raise as `draw`: ModelError for
        a captioner that can't be loaded, JobError while a training has the card.
        """
        ...


class NoHost:
    """The command line, and tests: no host around."""

    name = "none"

    def base_models(self) -> list[BaseModelChoice]:
        return []

    def refresh_base_models(self) -> None:
        pass

    def lora_dir(self) -> Path | None:
        return None

    def lora_root(self) -> Path | None:
        return None

    def auto_publish(self) -> bool:
        return False

    def refresh_loras(self) -> None:
        pass

    def takes_paths(self) -> bool:
        return True

    def is_waiting_for_picture(self) -> bool:
        return False

    def parked(self, device: str) -> AbstractContextManager[None]:  # noqa: ARG002  (nothing to park)
        return nullcontext()

    def card_memory(self) -> DeviceMemory | None:
        return None

    def samplers(self) -> tuple[str, ...]:
        return ()

    def draw(self, picture: HostPicture) -> list[Any]:  # noqa: ARG002
        raise ModelError("There is no WebUI that could draw pictures.", "Let Train Tools draw them itself.")

    def loaded_base_model(self) -> Path | None:
        return None

    def captioners(self) -> tuple[HostCaptioner, ...]:
        return ()

    def absent_captioners(self) -> tuple[HostCaptioner, ...]:
        return ()

    def open_captioner(
        self,
        kinds: tuple[HostCaptioner, ...],  # noqa: ARG002
        settings: CaptionSettings,  # noqa: ARG002
    ) -> AbstractContextManager[Any]:
        raise ModelError("There is no WebUI whose captioners could be used.", "Choose another captioner.")
