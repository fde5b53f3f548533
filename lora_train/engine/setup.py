"""From a job's spec to everything the loop needs, on the device before it needs it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lora_train.core.assets import resolve_base_model
from lora_train.core.conditioning import conditioning_of, trains_text_encoders
from lora_train.core.errors import DatasetError, JobError
from lora_train.core.events import Note
from lora_train.core.hash_cache import FILE_NAME, HashCache
from lora_train.core.heap import give_back_freed_memory
from lora_train.core.history import read_made_from
from lora_train.core.seeds import derive_seed
from lora_train.core.specs import TrainSpec
from lora_train.data.buckets import bucket_info
from lora_train.data.captions import common_tag, tag_frequency
from lora_train.data.dataset import Dataset, fingerprint, scan_dataset
from lora_train.data.epochs import Batch, Bucket, total_steps
from lora_train.data.holding_out import not_shown, parted
from lora_train.data.plan import captions_of, make_planner, place_in_buckets
from lora_train.data.repeats import with_folder_repeats
from lora_train.data.trained_text import plain_texts
from lora_train.engine import devices
from lora_train.engine.building import build_run_network
from lora_train.engine.cache import LatentCache, build_latent_cache
from lora_train.engine.checkpoint_hashes import CheckpointHashes
from lora_train.engine.compiling import CompiledBlocks, why_not_compiled
from lora_train.engine.denoiser import SizeTable, full_mask
from lora_train.engine.diffusion import alphas_cumprod
from lora_train.engine.disk_cache import DiskCache, circumstances
from lora_train.engine.gauge import open_gauge
from lora_train.engine.graphs import recordings_of, tell_of_rare_shapes
from lora_train.engine.loading import BaseModel, load_base_model
from lora_train.engine.masks import MaskCache, build_mask_cache
from lora_train.engine.memory import earlier_or_asked
from lora_train.engine.metadata import RunFacts
from lora_train.engine.networks import Continued
from lora_train.engine.previews import PreviewTexts
from lora_train.engine.processes import Processes
from lora_train.engine.quantised import require_kind
from lora_train.engine.reporting import Reporter
from lora_train.engine.run import Run
from lora_train.engine.team import Team
from lora_train.engine.text import Prompts
from lora_train.engine.texts import CachedTexts, TrainedTexts
from lora_train.engine.validation import HeldOut, validation_batches
from lora_train.engine.versions import note_versions

_ENCODE_TOGETHER_PX = 4 * 512 * 512
_ENCODE_TOGETHER_CPU_PX = 256 * 256
"""Pictures go through the VAE together up to about this many pixels: in its widest layers each takes 2 kB."""

_MOST_NAMED = 3
"""Of the pictures that differ, in the message."""
_NOISE_COUNTS_LITTLE = (
    "This model learns from pure noise on (zero terminal SNR), but Min-SNR gamma lets much noise count little and pure "
    "noise nothing: set it to 0 where brightness or composition are to be learned."
)
_ENCODED_AHEAD = "Captions are encoded ahead."
_NOWHERE_TO_WAIT = "Nothing of the base model waits in main memory: only NVIDIA cards fetch it while they compute."


def prepare_run(spec: TrainSpec, job_dir: Path, report: Reporter, team: Team | None = None) -> Run:
    """Load, encode and build all of a run; `team` are the processes that share it, where it is not this one alone.

    Raises TrainToolsError of the kind that fits what is wrong.
    """
    run = Run()
    run.spec, run.job_dir = spec, job_dir
    run.cache_dir = (job_dir / spec.cache).resolve() if spec.cache else None
    run.hashes = HashCache(run.cache_dir / FILE_NAME if run.cache_dir is not None else None)
    settings = spec.settings
    run.continued = Continued(Path(settings.continue_from)) if settings.continue_from else None
    if run.continued is not None:
        settings = run.continued.settle(settings, report)
    run.settings = settings
    _choose_device(run, report, team)
    everything = not_shown(_scan(spec, job_dir, report), spec.held_out)
    dataset, held = parted(everything, spec.held_out)

    run.model = model = _open_model(run, report)
    run.conditioning = conditioning_of(model.family)
    run.trains_text = trains_text_encoders(settings, model.family)
    run.resolution_px = settings.resolution or model.native_resolution_px
    buckets = place_in_buckets(dataset, settings, resolution_px=run.resolution_px, step_px=model.bucket_step_px)
    run.planner = make_planner(dataset, buckets, settings, spec.concept)
    run.total_steps = total_steps(run.planner, settings.epochs, settings.gradient_accumulation_steps)
    run.dataset_fingerprint = spec.dataset_fingerprint
    run.facts = _facts(run, dataset, buckets, held_out_views=len(held.pictures))
    held_buckets = place_in_buckets(held, settings, resolution_px=run.resolution_px, step_px=model.bucket_step_px)
    batches = _validation_batches(run, everything, held, held_buckets)
    # One part after the other, each let go when it has done its work: the UNet, by far the largest, comes last.
    base_texts = _texts_without_lora(run, batches)
    held_texts = _prepare_texts(run, batches, report)
    sets = [(dataset, buckets), (held, held_buckets)] if batches else [(dataset, buckets)]
    run.latents, *held_latents = _encode_pictures(run, sets, report)
    run.sizes = _sizes(run, dataset, buckets)
    run.masks = _read_masks(run, dataset, buckets, report) if settings.masked_loss else None
    run.held_out = None
    if held_texts is not None:
        run.held_out = HeldOut(
            dataset=held,
            batches=batches,
            latents=held_latents[0],
            sizes=_sizes(run, held, held_buckets),
            masks=_read_held_masks(run, held, held_buckets, held_latents[0], report),
            inpaint=run.inpaint,
            texts=held_texts,
            base_texts=base_texts or held_texts,
        )
    build_run_network(run)
    run.alphas = alphas_cumprod(zero_terminal_snr=model.zero_terminal_snr).to(run.device.torch)
    if run.is_first:
        run.checkpoint_hashes.start()  # not before: it would keep a core from what the first step waits for
    run.recordings = recordings_of(run, report)
    tell_of_rare_shapes(run, report)
    if settings.compile_blocks:
        if reason := why_not_compiled(run.device):
            report.events.write(Note("info", reason))
        else:
            run.compiled = CompiledBlocks(model.unet)
            run.compiled.attach()
    return run


def _choose_device(run: Run, report: Reporter, team: Team | None) -> None:
    """The device, the processes that have one each, the number format, and how the memory is laid out."""
    settings = run.settings
    place = team.place if team is not None else None
    run.device = devices.set_up(settings.device, settings.cpu_threads, place.local_number if place else 0)
    run.processes = Processes(team, run.device) if team is not None else None
    _tell_of_processes(run, report)
    run.dtype, reason = devices.choose_precision(settings.precision, run.device)
    report.events.write(Note("info", reason))
    if run.is_first:
        note_versions(run.job_dir, run.device)
    run.plan, run.tried = earlier_or_asked(settings, run.job_dir)
    run.gauge = open_gauge(run.device) if settings.fit_to_gpu and run.processes is None else None
    if run.processes is not None:
        run.plan = run.processes.same(run.plan)
    if run.plan.offload_share and not run.device.is_cuda:
        report.events.write(Note("info", _NOWHERE_TO_WAIT))
    require_kind(run.plan.base_weights, run.device.torch, run.dtype)


def _disk_cache(run: Run, kind: str, constants: Sequence[str], report: Reporter) -> DiskCache:
    """`constants` tell model and settings; the circumstances of this process are added."""
    return DiskCache(
        run.cache_dir / kind if run.cache_dir is not None else None,
        [*circumstances(run.device), *constants],
        lambda message: report.events.write(Note("warning", message)),
    )


def _tell_of_processes(run: Run, report: Reporter) -> None:
    if run.processes is None:
        return
    count = run.processes.count
    report.events.write(Note("info", f"{count} processes share every batch."))
    if run.settings.batch_size < count:
        message = (
            f"With batch_size {run.settings.batch_size}, some of the {count} processes have nothing to do: "
            f"make it a multiple of {count}."
        )
        report.events.write(Note("warning", message))


def _open_model(run: Run, report: Reporter) -> BaseModel:
    """Its parts are loaded later."""
    settings = run.settings
    report.phase("loading the base model")
    checkpoint = resolve_base_model(settings.base_model)
    vae_path = Path(settings.vae) if settings.vae else None
    if run.is_first:
        noted = partial(note_versions, run.job_dir, run.device)
        run.checkpoint_hashes = CheckpointHashes(checkpoint, vae_path, run.hashes, noted)
    prefers_channels_last = devices.prefers_channels_last(run.device, run.dtype)
    model = load_base_model(
        checkpoint,
        vae_path=vae_path,
        device=run.device.torch,
        dtype=run.dtype,
        prediction=settings.prediction,
        zero_terminal_snr=settings.zero_terminal_snr,
        layout=torch.channels_last if prefers_channels_last else torch.contiguous_format,
        base_weights=run.plan.base_weights,
    )
    if model.zero_terminal_snr and settings.min_snr_gamma and not settings.debiased_estimation:
        report.events.write(Note("warning", _NOISE_COUNTS_LITTLE))
    return model


def _scan(spec: TrainSpec, job_dir: Path, report: Reporter) -> Dataset:
    report.phase("reading the pictures")
    dataset = scan_dataset((job_dir / spec.dataset).resolve(), repeats=spec.settings.repeats)
    dataset = with_folder_repeats(dataset, spec.folder_repeats)
    for problem in dataset.problems:
        report.events.write(Note("warning", problem))
    if fingerprint(dataset) != spec.dataset_fingerprint:
        raise JobError(
            f"The pictures or captions in {dataset.root} are not the ones this training began with"
            f"{_which_differ(job_dir, dataset)}.",
            "Put them back as they were, or start a new training with the present ones.",
        )
    return dataset


def _which_differ(job_dir: Path, dataset: Dataset) -> str:
    """Empty where that is not known, or they are none themselves: masks, the numbers of folders."""
    made_from = read_made_from(job_dir)
    if made_from is None:
        return ""
    before = {picture.path: (picture.content, picture.caption) for picture in made_from.pictures}
    now = {picture.path: (picture.content, picture.caption) for picture in dataset.pictures}
    others = sorted(path for path in {*before, *now} if before.get(path) != now.get(path))
    more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
    return f": {', '.join(others[:_MOST_NAMED])}{more}" if others else ""


def _validation_batches(run: Run, everything: Dataset, held: Dataset, buckets: Sequence[Bucket]) -> list[Batch]:
    """Captions as they are trained, but never shuffled or left out."""
    texts = plain_texts(everything, run.settings, run.spec.concept)
    captions = {picture.path: text for picture, text in zip(everything.pictures, texts, strict=True)}
    return validation_batches(buckets, [captions[picture.path] for picture in held.pictures], run.settings.batch_size)


def _encode_pictures(run: Run, sets: Sequence[tuple[Dataset, list[Bucket]]], report: Reporter) -> list[LatentCache]:
    """One cache for each set: what one is encoded with must not change another's numbers."""
    settings, model = run.settings, run.model
    is_half = run.dtype == torch.float16 and run.conditioning.vae_works_in_half
    constants = [model.vae_identity(run.hashes), f"half {is_half}"] if run.cache_dir is not None else []
    kept = _disk_cache(run, "latents", constants, report)
    # One for each shape is all that an inpainting model needs.
    all_buckets = sorted({bucket for _, buckets in sets for bucket in buckets})
    run.inpaint = {bucket: full_mask(model, *bucket, kept) for bucket in all_buckets}

    prefers_channels_last = devices.prefers_channels_last(run.device, torch.float16 if is_half else torch.float32)
    layout = torch.channels_last if prefers_channels_last else torch.contiguous_format

    def open_vae() -> Any:
        vae = model.vae.to(torch.float16) if is_half else model.vae
        return vae.to(memory_format=layout)

    together_px = _ENCODE_TOGETHER_CPU_PX if run.device.is_cpu else _ENCODE_TOGETHER_PX
    total = sum(len(buckets) for _, buckets in sets)
    caches = [
        build_latent_cache(
            open_vae,
            [dataset.root / picture.path for picture in dataset.pictures],
            buckets,
            vae_scale=model.vae_scale,
            with_flips=settings.flip,
            batch_size=max(1, together_px // run.resolution_px**2 // (2 if settings.flip else 1)),
            device=run.device.torch,
            kept=kept,
            progress=lambda done, _, before=before: report.phase("encoding the pictures", before + done, total),
            warn=lambda message: report.events.write(Note("warning", message)),
        )
        for before, (dataset, buckets) in zip((0, len(sets[0][1])), sets, strict=False)
    ]
    kept.trim()
    model.drop_vae()  # previews load it anew
    devices.free_cached_memory(run.device)
    give_back_freed_memory()
    return caches


def _sizes(run: Run, dataset: Dataset, buckets: Sequence[Bucket]) -> SizeTable | None:
    if not run.conditioning.tells_sizes:
        return None
    originals = [(picture.width_px, picture.height_px) for picture in dataset.pictures]
    return SizeTable(originals, buckets, run.device.torch)


def _read_masks(run: Run, dataset: Dataset, buckets: Sequence[Bucket], report: Reporter) -> MaskCache | None:
    report.phase("reading the masks")
    return build_mask_cache(
        dataset,
        buckets,
        latent_size=lambda bucket: run.latents.latent_shape(bucket)[1:],
        device=run.device.torch,
        warn=lambda message: report.events.write(Note("warning", message)),
    )


def _read_held_masks(
    run: Run, held: Dataset, buckets: Sequence[Bucket], latents: LatentCache, report: Reporter
) -> MaskCache | None:
    """None also where the masks can't be used: then the whole pictures are measured."""
    if run.masks is None:
        return None
    try:
        return build_mask_cache(
            held,
            buckets,
            latent_size=lambda bucket: latents.latent_shape(bucket)[1:],
            device=run.device.torch,
            warn=lambda _: None,
        )
    except DatasetError as error:
        report.events.write(Note("warning", f"Held-out pictures are measured without masks: {error.message}"))
        return None


def _keeps_texts(run: Run) -> bool:
    """Whether the run goes on from a LoRA whose text encoder layers stay in force untrained."""
    return run.continued is not None and run.continued.has_text_encoder and not run.trains_text


def _texts_without_lora(run: Run, held_batches: list[Batch]) -> CachedTexts | None:
    """The held-out captions as the base model alone encodes them, where the run's are encoded otherwise."""
    if not held_batches or not _keeps_texts(run):
        return None
    settings = run.settings
    texts = CachedTexts(Prompts(run.model, clip_skip=settings.clip_skip, max_tokens=settings.max_tokens))
    texts.prepare(held_batches)
    texts.let_go()
    return texts


def _prepare_texts(run: Run, held_batches: list[Batch], report: Reporter) -> TrainedTexts | CachedTexts | None:
    """Returns the texts of the held-out pictures, where there are any: apart, as `_encode_pictures`."""
    settings, model = run.settings, run.model
    keeps_texts = _keeps_texts(run)
    if run.continued is not None and keeps_texts:
        run.continued.attach_texts(model)
    # Kept are only what the base model says, and captions that come again.
    is_for_ever = not run.trains_text and not keeps_texts and _captions_never_change(run)
    kept = _texts_on_disk(run, report) if is_for_ever and run.cache_dir is not None else None
    prompts = Prompts(model, clip_skip=settings.clip_skip, max_tokens=settings.max_tokens, kept=kept)
    prompts.ids(sorted({view.caption for batch in run.planner.batches(0) for view in batch.views}))
    report.events.write(*prompts.cut_notes())
    wants_previews = settings.generate_previews and settings.preview_prompts
    run.preview_texts = PreviewTexts(prompts, settings) if wants_previews else None
    run.texts = TrainedTexts(prompts, run.device.torch) if run.trains_text else CachedTexts(prompts)
    held_texts = TrainedTexts(prompts, run.device.torch) if run.trains_text else CachedTexts(prompts)
    held_texts.prepare(held_batches)
    if isinstance(run.texts, CachedTexts):
        report.phase("encoding the captions")
        run.texts.prepare(run.planner.batches(0))
        report.events.write(Note("info", f"{_ENCODED_AHEAD}\n{run.texts.count} ({run.texts.size_bytes / 1e6:.1f} MB)"))
        if is_for_ever:  # previews of a LoRA with text encoder layers draw with all weights of it
            if run.preview_texts is not None:
                run.preview_texts.encode_ahead()
            run.texts.let_go()
            if isinstance(held_texts, CachedTexts):
                held_texts.let_go()
            del prompts
            model.drop_text_encoders()
            devices.free_cached_memory(run.device)
            give_back_freed_memory()
    if kept is not None:
        kept.trim()
    return held_texts if held_batches else None


def _texts_on_disk(run: Run, report: Reporter) -> DiskCache:
    return _disk_cache(run, "texts", [run.model.text_identity(run.hashes), f"{run.dtype}"], report)


def _captions_never_change(run: Run) -> bool:
    """Whether every epoch has the same captions, so that encoding them once is enough."""
    settings = run.settings
    if settings.shuffle_captions or settings.caption_dropout:
        return False
    first = set(run.planner.shown(0))
    return all(set(run.planner.shown(epoch)) == first for epoch in range(1, settings.epochs))


def _facts(run: Run, dataset: Dataset, buckets: Sequence[Bucket], *, held_out_views: int) -> RunFacts:
    training = [picture for picture in dataset.pictures if not picture.is_regularisation]
    regular = [picture for picture in dataset.pictures if picture.is_regularisation]
    placed = [
        ((picture.width_px, picture.height_px), bucket, picture.repeats)
        for picture, bucket in zip(dataset.pictures, buckets, strict=True)
    ]
    captions = list(zip(dataset.pictures, captions_of(dataset, run.settings), strict=True))
    frequencies = {
        folder: tag_frequency(caption for picture, caption in captions if picture.folder == folder)
        for folder in {picture.folder for picture in training}
    }
    settings = run.settings
    return RunFacts(
        session_id=derive_seed(settings.seed, run.spec.name, int(run.spec.created)) % 2**32,
        started_at=time.time(),
        base_model_name=resolve_base_model(settings.base_model).name,
        vae_name=Path(settings.vae).name if settings.vae else "",
        family=run.model.family,
        prediction=run.model.prediction,
        zero_terminal_snr=run.model.zero_terminal_snr,
        compute_precision={torch.float32: "fp32", torch.bfloat16: "bf16"}.get(run.dtype, "fp16"),
        resolution_px=run.resolution_px,
        train_views=sum(picture.repeats for picture in training),
        regularisation_views=sum(picture.repeats for picture in regular),
        held_out_views=held_out_views,
        batches_per_epoch=run.planner.batch_count(0),
        total_steps=run.total_steps,
        dataset_dirs=_dirs(training),
        regularisation_dirs=_dirs(regular),
        tag_frequency=frequencies,
        bucket_info=dict(bucket_info(placed)),
        trigger_phrase=settings.trigger_word or common_tag([p.caption for p in training]),
    )


def _dirs(pictures: Sequence[Any]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for picture in pictures:
        entry = found.setdefault(picture.folder.rpartition("/")[2], {"n_repeats": picture.repeats, "img_count": 0})
        entry["img_count"] += 1
    return found
