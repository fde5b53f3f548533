"""The preview jobs: one finished LoRA, prompts x weights, one labelled grid; or the previews that a training lacks."""

from __future__ import annotations

from pathlib import Path

from lora_train.core.assets import resolve_base_model
from lora_train.core.config import TrainSettings
from lora_train.core.events import Sampled
from lora_train.core.infotext import lora_tag
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import PreviewSpec, SamplesSpec
from lora_train.data.prompts import without_tags
from lora_train.data.sheets import make_grid, save_png
from lora_train.engine import devices
from lora_train.engine.loading import BaseModel, load_base_model
from lora_train.engine.network import text_encoder_targets, unet_targets
from lora_train.engine.network_file import load_network
from lora_train.engine.network_protocol import Network
from lora_train.engine.previews import PreviewTexts, draw_previews, parameters_text, save_previews
from lora_train.engine.reporting import Reporter
from lora_train.engine.sample import draw_settings
from lora_train.engine.text import Prompts


def preview(spec: PreviewSpec, report: Reporter) -> dict[str, object]:
    """Draw the grid and write it to `spec.out`."""
    settings = spec.settings
    model, network, prompts = load_with_lora(settings, Path(spec.lora), report)
    draw_with = draw_settings(settings, model, model.native_resolution_px)

    def progress(done: int, total: int) -> None:
        report.phase("drawing previews", done, total)

    rows = draw_previews(model, network, PreviewTexts(prompts, settings), settings, draw_with, progress)
    grid = make_grid(
        rows,
        row_labels=settings.preview_prompts,
        column_labels=[f"{weight:g}" for weight in settings.preview_weights],
        title=Path(spec.lora).stem,
    )
    tag = lora_tag(Path(spec.lora).stem, settings.preview_weights[-1])
    prompt = f"{tag} {without_tags(settings.preview_prompts[0]).strip()}"
    save_png(grid, Path(spec.out), parameters_text(prompt, settings, draw_with))
    return {"grid": spec.out}


def draw_samples(spec: SamplesSpec, job: JobFolder, report: Reporter) -> dict[str, object]:
    """Draw the previews of several LoRAs of one training into its `samples` folder, as the training itself does."""
    settings = spec.settings
    train = JobFolder(job.path / spec.train)
    train.samples_dir.mkdir(exist_ok=True)
    model, prompts = load_for_drawing(settings, report)
    draw_with = draw_settings(settings, model, settings.resolution or model.native_resolution_px)
    loras = [path for name in spec.loras if (path := train.path / name).is_file()]  # some may be deleted by now
    for number, lora in enumerate(loras):

        def progress(done: int, total: int, number: int = number) -> None:
            report.phase("drawing previews", number * total + done, len(loras) * total)

        def told(path: Path, prompt: str, weight: float | None) -> None:
            report.events.write(Sampled(path=path.name, step=0, prompt=prompt, weight=weight))

        network = attach_lora(model, lora)
        rows = draw_previews(model, network, PreviewTexts(prompts, settings), settings, draw_with, progress)
        network.detach()
        save_previews(train.samples_dir, lora.stem, rows, settings, draw_with, told)
    return {"drawn": len(loras)}


def load_with_lora(settings: TrainSettings, lora: Path, report: Reporter) -> tuple[BaseModel, Network, Prompts]:
    """The base model of `settings` with a finished LoRA attached, for drawing and measuring."""
    model, prompts = load_for_drawing(settings, report)
    return model, attach_lora(model, lora), prompts


def attach_lora(model: BaseModel, lora: Path) -> Network:
    """Let the model draw with a finished LoRA."""
    targets = unet_targets(model.unet, with_convolutions=True) + text_encoder_targets(*model.text_encoders)
    network = load_network(lora, targets)
    network.requires_grad_(False)
    network.attach()
    return network


def load_for_drawing(settings: TrainSettings, report: Reporter) -> tuple[BaseModel, Prompts]:
    """The base model of `settings` as it is, and what encodes prompts for it."""
    device = devices.set_up(settings.device, settings.cpu_threads)
    dtype, _ = devices.choose_precision(settings.precision, device)
    report.phase("loading the base model")
    model = load_base_model(
        resolve_base_model(settings.base_model),
        vae_path=Path(settings.vae) if settings.vae else None,
        device=device.torch,
        dtype=dtype,
        prediction=settings.prediction,
        zero_terminal_snr=settings.zero_terminal_snr,
    )
    prompts = Prompts(
        model,
        clip_skip=settings.clip_skip,
        max_tokens=settings.max_tokens,
    )
    return model, prompts
