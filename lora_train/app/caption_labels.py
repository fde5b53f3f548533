"""What captioners are called on the page."""

from __future__ import annotations

from lora_train.core.caption_settings import CaptionerKind
from lora_train.core.host import HostCaptioner
from lora_train.core.specs import CaptionPlan

KINDS: dict[CaptionerKind, str] = {"wd14": "WD14 tagger", "blip": "BLIP"}
HOST_LABELS: dict[HostCaptioner, tuple[str, str]] = {
    "blip": ("The WebUI's BLIP", "A sentence: good for photographs."),
    "deepbooru": ("The WebUI's DeepDanbooru", "Tags: good for drawings."),
}


def labels_of(plan: CaptionPlan) -> list[str]:
    """What writes captions, in the order of its parts; empty for a plan that has none."""
    parts = [(bool(plan.blip), KINDS["blip"]), ("blip" in plan.host, HOST_LABELS["blip"][0])]
    parts += [(bool(plan.wd14), KINDS["wd14"]), ("deepbooru" in plan.host, HOST_LABELS["deepbooru"][0])]
    return [label for is_used, label in parts if is_used]
