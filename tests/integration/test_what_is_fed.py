"""What the model is really fed with all caches on: pictures, captions, noise, timesteps and the loss's weights.

The UNet is replaced by one that predicts zero, so the loss of a view is its weight times the mean square of its noise.
Fed latents and embeddings are compared with those of the same model loaded anew, for everything that could have been
fed, right or wrong.
"""

from __future__ import annotations

import gc
import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from lora_train.core import events as ev
from lora_train.core.specs import TrainSpec
from lora_train.data.epochs import Batch
from lora_train.engine import draws, setup, step
from lora_train.engine.loading import BaseModel
from lora_train.engine.reporting import Reporter
from lora_train.engine.text import Prompts

if TYPE_CHECKING:
    from tests.integration.conftest import Studio

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ALPHA_BAR = np.cumprod(1 - BETAS)
"""Stable Diffusion's schedule (Rombach et al. 2022), in double precision."""


class Fed(NamedTuple):
    """One view as the UNet got it, and its loss."""

    position: int
    noisy: torch.Tensor
    timestep: int
    text: torch.Tensor
    loss: float


class Table:
    """A prepared run whose UNet writes down what it is fed."""

    def __init__(self, run: setup.Run, reference: Any, paths: Sequence[Path]) -> None:
        self.run = run
        self.prompts = Prompts(reference, clip_skip=1, max_tokens=150)
        self._moments = {
            (index, is_mirrored): _moments(reference, path, is_mirrored)
            for index, path in enumerate(paths)
            for is_mirrored in (False, True)
        }
        self._embeddings: dict[str, torch.Tensor] = {}

    def epoch(self, epoch: int) -> list[tuple[Batch, list[Fed]]]:
        """Feed all batches of an epoch."""
        batches = self.run.planner.batches(epoch)
        self.run.texts.prepare(batches)
        return [(batch, self._feed(batch)) for batch in batches]

    def views(self, epoch: int) -> list[tuple[Any, Fed]]:
        """The same, view by view."""
        return [pair for batch, fed in self.epoch(epoch) for pair in zip(batch.views, fed, strict=True)]

    def _feed(self, batch: Batch) -> list[Fed]:
        got: list[tuple[torch.Tensor, ...]] = []

        def forward(
            noisy: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor, return_dict: bool
        ) -> tuple[torch.Tensor]:
            got.append((noisy.detach().clone(), timesteps.clone(), text.detach().clone()))
            return (torch.zeros_like(noisy),)

        self.run.model.unet.forward = forward
        losses = step.losses_of(self.run, step.batch_inputs(self.run, batch))
        ((noisy, timesteps, text),) = got
        return [
            Fed(view.position, noisy[row], int(timesteps[row]), text[row], losses[row].item())
            for row, view in enumerate(batch.views)
        ]

    def picture_of(self, view: Any, fed: Fed) -> tuple[int, bool]:
        """Which picture was fed, and whether mirrored, told from the latents alone."""
        noise = self.draw(view, "noise")
        share = ALPHA_BAR[fed.timestep]
        clean = (fed.noisy - (1 - share) ** 0.5 * noise) / share**0.5
        found = [key for key in self._moments if _are_close(clean, self.clean(view, *key), 1e-3)]
        assert len(found) == 1, "exactly one picture has these latents"
        return found[0]

    def clean(self, view: Any, picture: int, is_mirrored: bool) -> torch.Tensor:
        """The latents of a picture as they should be drawn for a view; SD1's scale is 0.18215."""
        mean, std = self._moments[picture, is_mirrored]
        return (mean + std * self.draw(view, "latent")) * 0.18215

    def noise_of(self, view: Any, fed: Fed) -> torch.Tensor:
        """The noise that was fed, told from the noisy latents and the picture."""
        share = ALPHA_BAR[fed.timestep]
        clean = self.clean(view, view.source, view.flip)
        return (fed.noisy - share**0.5 * clean) / (1 - share) ** 0.5

    def caption_of(self, fed: Fed, candidates: Sequence[str]) -> str:
        """Which of the captions was fed, told from the embeddings alone."""
        for caption in set(candidates) - self._embeddings.keys():
            with torch.no_grad():
                self._embeddings[caption] = self.prompts.encode(self.prompts.ids([caption])).hidden[0]
        found = [one for one in candidates if _are_close(fed.text, self._embeddings[one], 1e-4)]
        assert len(found) == 1, "exactly one caption has these embeddings"
        return found[0]

    def draw(self, view: Any, purpose: str) -> torch.Tensor:
        shape = self.run.latents.latent_shape((64, 64))
        return draws.normal(self.run, Batch((64, 64), (view,)), purpose, shape)[0]


def _moments(reference: Any, path: Path, is_mirrored: bool) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = np.array(Image.open(path))
    pixels = pixels[:, ::-1].copy() if is_mirrored else pixels
    with torch.no_grad():
        scaled = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = reference.vae.encode(scaled).latent_dist
    return latents.mean[0], latents.std[0]


def _are_close(first: torch.Tensor, second: torch.Tensor, tolerance: float) -> bool:
    return first.shape == second.shape and bool((first - second).abs().max() < tolerance)


@pytest.fixture
def lay(studio: Studio, demo_model: Any) -> Callable[..., Table]:
    """Prepares a run over a folder of pictures."""

    def lay(images: Path, **settings: Any) -> Table:
        job = studio.plan(images, **{"min_snr_gamma": 0, "batch_size": 2, **settings})
        spec = job.read_spec()
        assert isinstance(spec, TrainSpec)
        events = ev.EventWriter(job.events_path)
        run = setup.prepare_run(spec, job.path, Reporter(job, events))
        events.close()
        dataset = job.path / spec.dataset
        sources = sorted(dataset.rglob("*.png"), key=lambda path: path.relative_to(dataset).as_posix())
        return Table(run, demo_model, sources)

    return lay


TAGS = ("red", "big", "round", "soft")


@pytest.mark.parametrize("trains_text", [True, False])
def test_shuffle_keep_dropout_trigger_and_flip(studio: Studio, lay: Callable[..., Table], trains_text: bool) -> None:
    images = studio.pictures("pictures", [", ".join(TAGS)] * 2)
    table = lay(
        images,
        train_text_encoder=trains_text,
        trigger_word="zzz",
        shuffle_captions=True,
        keep_tags=1,
        caption_dropout=0.25,
        flip=True,
        repeats=4,
        epochs=8,
    )
    orders = [", ".join(order) for order in itertools.permutations(TAGS)]
    possible = ["", *orders, *(f"zzz, {order}" for order in orders)]  # with all that would be wrong
    captions: list[str] = []
    pictures: list[tuple[int, bool]] = []
    for epoch in range(8):
        views = table.views(epoch)
        shown = [table.picture_of(view, fed) for view, fed in views]
        assert Counter(picture for picture, _ in shown) == {0: 4, 1: 4}
        pictures += shown
        captions += [table.caption_of(fed, possible) for _, fed in views]
        assert [table.caption_of(fed, possible) for _, fed in views] == [view.caption for view, _ in views]

    kept = [caption for caption in captions if caption]
    # 64 views: the bounds are three standard deviations of a coin with these chances.
    assert 6 <= len(captions) - len(kept) <= 26
    assert all(caption.startswith("zzz, red, ") for caption in kept)
    assert len(set(kept)) == 6, "all orders of the three other tags come up"
    assert 20 <= sum(is_mirrored for _, is_mirrored in pictures) <= 44


def test_nothing_is_changed_unasked(studio: Studio, lay: Callable[..., Table]) -> None:
    captions = ["red, big", "blue, small", "green, flat"]
    table = lay(studio.pictures("pictures", captions), train_text_encoder=False)
    for epoch in range(2):
        views = table.views(epoch)
        pictures = [table.picture_of(view, fed) for view, fed in views]
        assert sorted(pictures) == [(0, False), (1, False), (2, False)]
        fed_captions = [table.caption_of(fed, captions) for _, fed in views]
        assert fed_captions == [captions[picture] for picture, _ in pictures]


def test_captions_of_several_chunks(studio: Studio, lay: Callable[..., Table]) -> None:
    """One caption of two chunks and a short one in a batch: the short one gets an empty chunk."""
    long = ", ".join(["red round thing"] * 30)
    table = lay(studio.pictures("pictures", [long, "blue"]), train_text_encoder=False)
    ((_, fed),) = table.epoch(0)
    with torch.no_grad():
        expected = table.prompts.encode(table.prompts.ids([long, "blue"])).hidden
    assert expected.shape[1] == 154
    for row in expected:
        assert sum(_are_close(row, one.text, 1e-4) for one in fed) == 1


def test_repeats_of_folders_and_of_the_setting(studio: Studio, lay: Callable[..., Table]) -> None:
    studio.pictures("kohya/3_often", ["red"], seed=1)
    studio.pictures("kohya/1_seldom", ["blue"], seed=2)
    by_folder = lay(studio.root / "kohya", repeats=-1)
    shown = Counter(by_folder.picture_of(view, fed)[0] for view, fed in by_folder.views(0))
    assert shown == {0: 1, 1: 3}  # in the order of the folders' names: 1_seldom, 3_often

    by_setting = lay(studio.root / "kohya", name="other", repeats=2)
    shown = Counter(by_setting.picture_of(view, fed)[0] for view, fed in by_setting.views(0))
    assert shown == {0: 2, 1: 2}


def test_regularisation_pictures_and_their_weight(studio: Studio, lay: Callable[..., Table]) -> None:
    studio.pictures("kohya/4_thing", ["red", "blue"], seed=1)
    studio.pictures("kohya/reg/1_class", ["grey", "white", "plain"], seed=2)
    table = lay(studio.root / "kohya", repeats=-1, trigger_word="zzz", prior_loss_weight=0.25, train_text_encoder=False)
    possible = ["red", "blue", "grey", "white", "plain"]
    possible += [f"zzz, {caption}" for caption in possible]
    seen: Counter[str] = Counter()
    for view, fed in table.views(0):
        picture, _ = table.picture_of(view, fed)
        caption = table.caption_of(fed, possible)
        seen[caption] += 1
        is_regular = picture >= 2  # 4_thing comes before reg/1_class
        assert caption == ["zzz, red", "zzz, blue", "grey", "white", "plain"][picture]
        weight = 0.25 if is_regular else 1.0
        expected = weight * table.noise_of(view, fed).square().mean().item()
        assert fed.loss == pytest.approx(expected, rel=1e-3)
    assert seen["zzz, red"] == seen["zzz, blue"] == 4
    assert sum(seen[caption] for caption in ("grey", "white", "plain")) == 8, "as many as training views"
    assert min(seen[caption] for caption in ("grey", "white", "plain")) >= 2


def test_noise_offset_moves_each_channel(studio: Studio, lay: Callable[..., Table]) -> None:
    strength = 0.5
    table = lay(studio.pictures("pictures", ["red", "blue"]), noise_offset=strength, repeats=8)
    offsets: list[torch.Tensor] = []
    for view, fed in table.views(0):
        noise = table.noise_of(view, fed)
        offset = noise - table.draw(view, "noise")
        per_channel = offset.mean(dim=(1, 2), keepdim=True)
        assert _are_close(offset, per_channel.expand_as(offset), 1e-3)
        offsets.append(per_channel.flatten())
        assert fed.loss == pytest.approx(noise.square().mean().item(), rel=1e-3), "the target has it too"
    # 16 views x 4 channels: the spread of 64 normal numbers times the strength, three standard errors either way.
    assert torch.cat(offsets).std().item() == pytest.approx(strength, rel=3 / (2 * 64) ** 0.5)


def test_min_snr_weights(studio: Studio, lay: Callable[..., Table]) -> None:
    table = lay(studio.pictures("pictures", ["red", "blue"]), min_snr_gamma=5, repeats=8)
    weights: list[float] = []
    for view, fed in table.views(0):
        share = ALPHA_BAR[fed.timestep]
        signal_to_noise = share / (1 - share)
        weights.append(min(signal_to_noise, 5) / signal_to_noise)
        plain = table.noise_of(view, fed).square().mean().item()
        assert fed.loss == pytest.approx(weights[-1] * plain, rel=2e-3)
    assert min(weights) < 0.5
    assert max(weights) == 1


def test_debiased_weights_take_the_place_of_min_snr(studio: Studio, lay: Callable[..., Table]) -> None:
    table = lay(studio.pictures("pictures", ["red", "blue"]), min_snr_gamma=5, debiased_estimation=True, repeats=4)
    for view, fed in table.views(0):
        share = ALPHA_BAR[fed.timestep]
        weight = min(share / (1 - share), 1000) ** -0.5
        plain = table.noise_of(view, fed).square().mean().item()
        assert fed.loss == pytest.approx(weight * plain, rel=2e-3)


@pytest.mark.parametrize("loss", ["huber", "smooth_l1"])
def test_robust_losses(studio: Studio, lay: Callable[..., Table], loss: str) -> None:
    table = lay(studio.pictures("pictures", ["red", "blue"]), loss=loss, huber_c=0.2, huber_schedule="snr", repeats=4)
    for view, fed in table.views(0):
        share = ALPHA_BAR[fed.timestep]
        c = (1 - 0.2) / (1 + ((1 - share) / share) ** 0.5) ** 2 + 0.2
        roots = np.sqrt(table.noise_of(view, fed).double().numpy() ** 2 + c**2) - c
        expected = 2 * roots.mean() * (c if loss == "huber" else 1)
        assert fed.loss == pytest.approx(expected, rel=1e-3)


def test_multires_noise_is_coarser_and_as_strong(studio: Studio, lay: Callable[..., Table]) -> None:
    images = studio.pictures("pictures", ["red", "blue"])
    settings = {"multires_noise_iterations": 6, "multires_noise_discount": 0.9, "repeats": 8}
    together = lay(images, **settings)
    coarse: list[float] = []
    noises: dict[int, torch.Tensor] = {}
    for view, fed in together.views(0):
        noise = noises[fed.position] = together.noise_of(view, fed)
        assert noise.std().item() == pytest.approx(1, abs=1e-3)
        coarse.append(torch.nn.functional.avg_pool2d(noise, 4).square().mean().item())
        assert fed.loss == pytest.approx(noise.square().mean().item(), rel=1e-3), "the target has it too"
    # White noise of deviation 1 has 1/16 there.
    assert sum(coarse) / len(coarse) > 3 / 16
    alone = lay(images, name="alone", **settings, batch_size=1)
    for view, fed in alone.views(0):
        assert _are_close(alone.noise_of(view, fed), noises[fed.position], 1e-3), "batches change nothing"


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_timesteps_of_a_range(studio: Studio, lay: Callable[..., Table], sampling: str) -> None:
    images = studio.pictures("pictures", ["red", "blue"])
    table = lay(images, min_timestep=300, max_timestep=304, timestep_sampling=sampling, repeats=32)
    timesteps = [fed.timestep for _, fed in table.views(0)]
    assert set(timesteps) == {300, 301, 302, 303}
    if sampling == "logit_normal":
        # Half way is logit 0; a quarter and three quarters are +-1.0986: 73 % of normal numbers lie between.
        middle = sum(timestep in (301, 302) for timestep in timesteps)
        assert 0.73 * 64 - 11 <= middle <= 0.73 * 64 + 11, "three standard deviations of 64 draws"


def test_draws_depend_on_seed_epoch_and_position_alone(studio: Studio, lay: Callable[..., Table]) -> None:
    images = studio.pictures("pictures", ["red", "blue", "green", "white"])

    def draws(**settings: Any) -> dict[tuple[int, int], tuple[int, torch.Tensor]]:
        table = lay(images, repeats=2, **settings)
        return {
            (epoch, fed.position): (fed.timestep, table.noise_of(view, fed))
            for epoch in range(2)
            for view, fed in table.views(epoch)
        }

    single = draws(batch_size=1, gradient_accumulation_steps=2)
    double = draws(batch_size=2, train_text_encoder=False, flip=True)
    assert single.keys() == double.keys() == set(itertools.product(range(2), range(8)))
    for place, (timestep, noise) in single.items():
        assert double[place][0] == timestep
        assert _are_close(double[place][1], noise, 1e-3)
    timesteps = [timestep for timestep, _ in single.values()]
    assert len(set(timesteps)) > 12, "places have their own"
    other = draws(batch_size=1, seed=99)
    assert [timestep for timestep, _ in other.values()] != timesteps
    assert not any(_are_close(other[place][1], single[place][1], 0.1) for place in single)


@pytest.mark.parametrize(
    ("settings", "keeps_text_encoder"),
    [
        ({"train_text_encoder": False}, False),
        ({"train_text_encoder": False, "preview_prompts": ["red"]}, False),
        ({"train_text_encoder": False, "shuffle_captions": True}, True),
        ({"train_text_encoder": True}, True),
    ],
)
def test_parts_that_did_their_work_are_freed(
    studio: Studio,
    lay: Callable[..., Table],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    keeps_text_encoder: bool,
) -> None:
    used: dict[str, weakref.ref[Any]] = {}
    build_latent_cache, prompts = setup.build_latent_cache, setup.Prompts

    def spied_build(open_vae: Any, *args: Any, **kwargs: Any) -> Any:
        used["vae"] = weakref.ref(open_vae())
        return build_latent_cache(open_vae, *args, **kwargs)

    def spied_prompts(model: BaseModel, **kwargs: Any) -> Prompts:
        used["text encoder"] = weakref.ref(model.text_encoders[0])
        return prompts(model, **kwargs)

    monkeypatch.setattr(setup, "build_latent_cache", spied_build)
    monkeypatch.setattr(setup, "Prompts", spied_prompts)
    table = lay(studio.pictures("pictures", ["red, big", "blue, small"]), epochs=2, **settings)
    gc.collect()
    assert used["vae"]() is None, "the latents are cached, nothing needs the VAE"
    assert (used["text encoder"]() is not None) == keeps_text_encoder
    for epoch in range(2):  # and the loop finds all it needs
        assert len(table.views(epoch)) == 2
