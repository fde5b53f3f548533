"""What stands below the choice of an optimizer."""

from __future__ import annotations

from lora_train.app.snapshot import OptimizerEntry
from lora_train.ui import view

_ABSENT = OptimizerEntry(
    "Prodigy", "prodigyopt", "absent", "Prodigy needs prodigyopt.", '"/venv/bin/python" -m pip install prodigyopt'
)
_EIGHT_BIT = '"/venv/bin/python" -m pip install bitsandbytes'


def optimizer_states() -> dict[str, str]:
    checking = OptimizerEntry("DAdaptation", "dadaptation", "checking")
    works = OptimizerEntry("AdamWScheduleFree", "schedulefree", "works")
    broken = OptimizerEntry("AdamW8bit", "bitsandbytes", "broken", "AdamW8bit does not work here.")
    absent = [
        _ABSENT,
        *(
            OptimizerEntry(f"{name}8bit", "bitsandbytes", "absent", "-", _EIGHT_BIT)
            for name in ("AdamW", "SGDNesterov")
        ),
    ]
    return {
        "optimizers all there": view.optimizers_html([works, checking], "AdamW"),
        "optimizer absent": view.optimizers_html([*absent, works], "Prodigy"),
        "optimizer checking": view.optimizers_html([checking, _ABSENT], "DAdaptation"),
        "optimizer works": view.optimizers_html([works], "AdamWScheduleFree"),
        "optimizer broken": view.optimizers_html([broken, works], "AdamW8bit"),
    }
