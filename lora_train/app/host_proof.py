"""The host is asked for the pictures of a proof: without the LoRA, with it at weight 0 and at weight 1."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import msgspec

from lora_train.app.host_grids import draw_when_free
from lora_train.app.planning import check_base_model
from lora_train.core.assets import resolve_base_model
from lora_train.core.errors import TrainToolsError
from lora_train.core.host import Host, HostPicture
from lora_train.core.infotext import lora_tag
from lora_train.core.jobs import JobFolder, RequestedEnd
from lora_train.core.presets import native_resolution_px
from lora_train.core.proofs import FILE_NAME, LEAST_SPREAD, MOST_STEPS, Fact, Proof, Proofs, read_proofs
from lora_train.core.records import write_json
from lora_train.core.specs import ProofSpec

_SAME_LEVELS = 1.0
"""Mean difference, in levels of 255, of pictures that are the same: some cards draw nothing twice exactly."""
_HINT = "Refresh the WebUI's LoRAs and prove it again; its console says more."
_writing = threading.Lock()
_log = logging.getLogger(__name__)


def ask_host(host: Host, train: JobFolder, spec: ProofSpec) -> threading.Thread | None:
    """Let the host draw, in a thread, and add what was found to the training's proof of this copy.

    None where nothing is to be done: no host that draws, or a copy that is refuted already.
    """
    proof = read_proofs(train).get(spec.lora)
    if not host.samplers() or proof is None or proof.reason or proof.tensors_sha256 != spec.tensors_sha256:
        return None
    thread = threading.Thread(target=_ask, args=(host, train, spec), name="train-tools-proof", daemon=True)
    thread.start()
    return thread


def _ask(host: Host, train: JobFolder, spec: ProofSpec) -> None:
    try:
        try:
            fact, reason = _found(host, spec)
        except TrainToolsError as error:
            fact, reason = Fact("Not drawn by the WebUI", error.message), ""
        _add(train, spec, fact, reason)
    except RequestedEnd:
        pass
    except Exception:  # the border of the thread; the worker's proof stands without the host's part
        _log.exception("The WebUI could not be asked for a picture with %s.", spec.published)


def _found(host: Host, spec: ProofSpec) -> tuple[Fact, str]:
    """What the host's pictures tell, and the reason why the LoRA does not work there ("" where it does).

    It never loads another checkpoint: that would take minutes and memory from the person at the WebUI.
    """
    from lora_train.data.levels import mean_difference, spread

    loaded, own = host.loaded_base_model(), resolve_base_model(spec.settings.base_model)
    if loaded is None or loaded.resolve() != own.resolve():
        return Fact("Not asked: the WebUI has another checkpoint loaded"), ""
    stem = Path(spec.published).stem
    base, at_zero, at_one = (
        _draw(host, spec, own, f"{tag} {spec.prompt}".strip()) for tag in ("", lora_tag(stem, 0), lora_tag(stem, 1))
    )
    drawn_by = Fact("Drawn by", host.name)
    if mean_difference(base, at_zero) > _SAME_LEVELS:
        return drawn_by, "At weight 0 the WebUI does not draw what it draws without the LoRA."
    if spread(at_one) < LEAST_SPREAD <= spread(base):
        return drawn_by, "At weight 1 the WebUI draws an empty picture."
    if mean_difference(base, at_one) <= mean_difference(base, at_zero):
        return drawn_by, "At weight 1 the WebUI draws what it draws without the LoRA."
    return drawn_by, ""


def _draw(host: Host, spec: ProofSpec, base_model: Path, prompt: str) -> Any:
    """One picture, always with the same seed. Raises RequestedEnd where the copy is gone meanwhile."""

    def end_if_gone() -> None:
        if not Path(spec.published).is_file():
            raise RequestedEnd("stop")

    settings, known = spec.settings, host.samplers()
    own_px = native_resolution_px(check_base_model(settings))
    side_px = settings.preview_size_px or settings.resolution or own_px
    picture = HostPicture(
        prompt=prompt,
        negative_prompt=settings.preview_negative_prompt,
        width_px=side_px,
        height_px=side_px,
        sampler=settings.preview_sampler if settings.preview_sampler in known else known[0],
        steps=min(settings.preview_steps, MOST_STEPS),
        cfg_scale=settings.preview_cfg_scale,
        seed=settings.preview_seed,
        base_model=str(base_model),
        clip_skip=settings.clip_skip,
    )
    return draw_when_free(host, picture, end_if_gone)[0].convert("RGB")


def _add(train: JobFolder, spec: ProofSpec, fact: Fact, reason: str) -> None:
    """Complete the proof of this copy, unless there is a newer one or the training is gone."""
    with _writing:
        proofs = read_proofs(train)
        proof = proofs.get(spec.lora)
        if proof is None or proof.tensors_sha256 != spec.tensors_sha256:
            return
        whole: Proof = msgspec.structs.replace(
            proof, facts=(*proof.facts, fact), reason=reason, hint=_HINT if reason else ""
        )
        write_json(train.path / FILE_NAME, Proofs({**proofs, spec.lora: whole}))
