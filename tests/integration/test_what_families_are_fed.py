"""What the UNets of SD2, SDXL and inpainting models are really fed with all caches on, mirrored or not.

The UNet is replaced by one that predicts zero. Everything it got is worked out anew from the pictures, the captions,
the seeds and the parts of the same model loaded a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from lora_train.core import events as ev
from lora_train.core.seeds import derive_seed
from lora_train.core.specs import TrainSpec
from lora_train.data.epochs import Batch, View
from lora_train.engine import setup, step
from lora_train.engine.reporting import Reporter

if TYPE_CHECKING:
    from tests.integration.conftest import Studio

CAPTIONS = ["red, big", "blue, small", "green, flat"]
SIZES_PX = ((201, 90), (64, 64), (90, 150))
"""The first and last are cut: one column more on one side than on the other, or some rows."""

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ROOTS = np.cumprod(1 - BETAS) ** 0.5
"""Square roots of the signal's share, Stable Diffusion's schedule (Rombach et al. 2022) in double precision."""
ZERO_SNR_ROOTS = (ROOTS - ROOTS[-1]) * ROOTS[0] / (ROOTS[0] - ROOTS[-1])
"""Lin et al. 2023, algorithm 1."""


class Fed(NamedTuple):
    """What the UNet got for one batch, and the losses."""

    noisy: torch.Tensor
    timesteps: torch.Tensor
    text: torch.Tensor
    added: dict[str, torch.Tensor] | None
    losses: torch.Tensor


class Table:
    """A prepared run whose UNet writes down what it is fed, and the model loaded anew."""

    def __init__(self, run: setup.Run, reference: Any, folder: Path, notes: list[str]) -> None:
        self.run = run
        self.notes = notes
        self._reference = reference
        self._pictures = [Image.open(path) for path in sorted(folder.rglob("*.png"))]
        self.is_sdxl = reference.family.startswith("sdxl")
        self.vae_scale = 0.13025 if self.is_sdxl else 0.18215

    def batches(self, epochs: int) -> list[tuple[Batch, Fed]]:
        found: list[tuple[Batch, Fed]] = []
        for epoch in range(epochs):
            batches = self.run.planner.batches(epoch)
            self.run.texts.prepare(batches)
            found += [(batch, self._feed(batch)) for batch in batches]
        return found

    def _feed(self, batch: Batch) -> Fed:
        got: list[Any] = []

        def forward(
            noisy: torch.Tensor,
            timesteps: torch.Tensor,
            text: torch.Tensor,
            return_dict: bool,
            added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        ) -> tuple[torch.Tensor]:
            got.append((noisy.detach().clone(), timesteps.clone(), text.detach().clone(), added_cond_kwargs))
            return (torch.zeros_like(noisy[:, :4]),)

        self.run.model.unet.forward = forward
        losses = step.losses_of(self.run, step.batch_inputs(self.run, batch))
        (all_that,) = got
        return Fed(*all_that, losses.detach())

    def draw(self, view: View, purpose: str, shape: torch.Size) -> torch.Tensor:
        seed = derive_seed(self.run.settings.seed, view.epoch, view.position, purpose)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def cut(self, view: View, bucket: tuple[int, int]) -> tuple[np.ndarray[Any, Any], list[int]]:
        """The pixels of a view, and the six numbers that tell how they were got."""
        picture = self._pictures[view.source]
        (width, height), (wide, high) = picture.size, bucket
        scale = max(wide / width, high / height)
        resized = picture.resize((max(wide, round(width * scale)), max(high, round(height * scale))), Image.LANCZOS)
        left, top = (resized.width - wide) // 2, (resized.height - high) // 2
        pixels = np.asarray(resized)[top : top + high, left : left + wide]
        if view.flip:
            pixels, left = pixels[:, ::-1], resized.width - left - wide
        return pixels.copy(), [height, width, top, left, high, wide]

    @torch.no_grad()
    def clean(self, view: View, bucket: tuple[int, int]) -> torch.Tensor:
        """(4, h, w) as the view should be drawn from the VAE's distribution."""
        pixels = torch.from_numpy(self.cut(view, bucket)[0]).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = self._reference.vae.encode(pixels).latent_dist
        noise = self.draw(view, "latent", latents.mean.shape[1:])
        return (latents.mean[0] + latents.std[0] * noise) * self.vae_scale

    @torch.no_grad()
    def text(self, caption: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(77, D) and, for SDXL, (P,): each encoder by itself, its padding given here."""
        states: list[torch.Tensor] = []
        pooled = None
        for place, encoder in enumerate(self._reference.text_encoders):
            ids = self._reference.tokenizers[0](caption).input_ids
            pads_with_zero = place == 1 or self._reference.family.startswith("sd2")
            padded = torch.tensor([ids + [0 if pads_with_zero else 49407] * (77 - len(ids))])
            output = encoder(padded, output_hidden_states=True)
            states.append(output.hidden_states[-2] if self.is_sdxl else output.last_hidden_state)
            pooled = output.text_embeds[0] if place == 1 else None
        return torch.cat(states, dim=-1)[0], pooled

    @torch.no_grad()
    def grey(self, bucket: tuple[int, int]) -> torch.Tensor:
        """(4, h, w): 0.5 grey is 0 between -1 and 1."""
        wide, high = bucket
        return self._reference.vae.encode(torch.zeros(1, 3, high, wide)).latent_dist.mean[0] * self.vae_scale


@pytest.fixture
def lay(studio: Studio, checkpoint_of: Callable[[str], Path], model_of: Callable[[str], Any]) -> Callable[..., Table]:
    """Prepares a run over three pictures with a family's small model."""

    def lay(family: str, **settings: Any) -> Table:
        images = studio.pictures("pictures", CAPTIONS, sizes_px=SIZES_PX)
        values = {"min_snr_gamma": 0, "flip": True, "repeats": 3, "batch_size": 2, "resolution": 64, **settings}
        job = studio.plan(images, base_model=str(checkpoint_of(family)), **values)
        spec = job.read_spec()
        assert isinstance(spec, TrainSpec)
        events = ev.EventWriter(job.events_path)
        run = setup.prepare_run(spec, job.path, Reporter(job, events))
        events.close()
        notes = [event.message for event in job.events() if isinstance(event, ev.Note)]
        return Table(run, model_of(family), job.path / spec.dataset, notes)

    return lay


_V = {"prediction": "v_prediction"}


@pytest.mark.parametrize(
    ("family", "settings", "roots"),
    [
        ("sd2", _V, ROOTS),
        ("sdxl", {}, ROOTS),
        ("sdxl", {**_V, "zero_terminal_snr": "on", "train_sdxl_text_encoders": True}, ZERO_SNR_ROOTS),
        ("sd1-inpaint", {}, ROOTS),
        ("sdxl-inpaint", {}, ROOTS),
    ],
)
def test_everything_that_is_fed(
    lay: Callable[..., Table], family: str, settings: dict[str, Any], roots: np.ndarray[Any, Any]
) -> None:
    table = lay(family, **settings)
    mirrored: set[bool] = set()
    told: set[tuple[float, ...]] = set()
    for batch, fed in table.batches(2):
        for row, view in enumerate(batch.views):
            mirrored.add(view.flip)
            clean = table.clean(view, batch.bucket)
            noise = table.draw(view, "noise", clean.shape)
            root = float(roots[int(fed.timesteps[row])])
            rest = (1 - root**2) ** 0.5
            close(fed.noisy[row, :4], root * clean + rest * noise)
            target = root * noise - rest * clean if settings else noise
            assert fed.losses[row].item() == pytest.approx(target.square().mean().item(), rel=1e-3)

            hidden, pooled = table.text(view.caption)
            close(fed.text[row], hidden)
            if table.is_sdxl:
                assert fed.added is not None
                assert pooled is not None
                close(fed.added["text_embeds"][row], pooled)
                assert fed.added["time_ids"][row].tolist() == table.cut(view, batch.bucket)[1]
                told.add(tuple(fed.added["time_ids"][row].tolist()))
            else:
                assert fed.added is None
            if "inpaint" in family:
                assert torch.equal(fed.noisy[row, 4], torch.ones_like(clean[0]))
                close(fed.noisy[row, 5:], table.grey(batch.bucket))
            else:
                assert fed.noisy.shape[1] == 4
    assert mirrored == {True, False}
    if table.is_sdxl:
        assert len(told) == 4, "three pictures, one of which is cut elsewhere when it is mirrored"


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted.float(), rtol=1e-3, atol=1e-4)


def test_who_trains_the_text_encoders(lay: Callable[..., Table]) -> None:
    """SDXL has a setting of its own; the one of the others says nothing there."""
    cached = lay("sdxl", train_text_encoder=True)
    assert list(cached.run.groups) == ["unet"]
    # 3 captions of 77 tokens of 32 + 64 numbers, and 64 pooled ones each, in float32: 89 472 bytes.
    assert "Captions are encoded ahead.\n3 (0.1 MB)" in cached.notes
    trained = lay("sdxl", train_sdxl_text_encoders=True, text_encoder_lr=0.5, learning_rate=0.25)
    assert list(trained.run.groups) == ["unet", "text_encoder", "text_encoder_2"]
    # 12 and 32 layers of six, each with two matrices.
    assert [len(group.parameters) for group in trained.run.groups.values()][1:] == [144, 384]
    assert [group["lr"] for group in trained.run.optimizer.param_groups] == [0.25, 0.5, 0.5]
    assert list(lay("sd2", train_text_encoder=False, train_sdxl_text_encoders=True).run.groups) == ["unet"]


def test_min_snr_against_zero_terminal_snr_is_told(lay: Callable[..., Table]) -> None:
    """Its weight, min(SNR, gamma) / (SNR + 1), is 0 at pure noise."""
    zero = {**_V, "zero_terminal_snr": "on"}

    def is_told(**settings: Any) -> bool:
        return any("set it to 0" in note for note in lay("sd2", **settings).notes)

    assert is_told(**zero, min_snr_gamma=5)
    assert not is_told(**zero, min_snr_gamma=0)
    assert not is_told(**zero, min_snr_gamma=5, debiased_estimation=True)
    assert not is_told(**_V, min_snr_gamma=5)


def test_half_precision_leaves_sdxls_vae_whole(lay: Callable[..., Table], monkeypatch: pytest.MonkeyPatch) -> None:
    formats: list[torch.dtype] = []
    build = setup.build_latent_cache

    def spied(open_vae: Any, *args: Any, **kwargs: Any) -> Any:
        formats.append(next(open_vae().parameters()).dtype)
        return build(open_vae, *args, **kwargs)

    monkeypatch.setattr(setup, "build_latent_cache", spied)
    lay("sdxl", precision="fp16")
    lay("sd2", precision="fp16")
    assert formats == [torch.float32, torch.float16]
