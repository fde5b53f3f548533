"""The health check with everything that it can find."""

from __future__ import annotations

import msgspec

from lora_train.app.snapshot import Selection
from lora_train.core.health import BucketUse, Counted, Finding, Group, HealthReport, PictureHealth, Shown
from lora_train.core.jobs import JobStatus
from lora_train.ui import view


def make_health_picture(number: int, **changes: object) -> PictureHealth:
    """A crop of 512 x 512 out of the middle of 1024 x 768."""
    picture = PictureHealth(
        file=f"9_Cat/{number:05d}-0-cat.png",
        width_px=512,
        height_px=512,
        caption="sks cat, grass" if number % 2 else "",
        is_regularisation=False,
        stamp=f"{number:012x}",
        bucket_px=(512, 512),
        outline_px=(1024, 768),
        kept_px=(128.0, 0.0, 896.0, 768.0),
        lost_by_update=0.25,
        lost_by_bucket=0.0,
        lost_share=0.25,
        enlargement=0.667,
    )
    return msgspec.structs.replace(picture, **changes)


def make_health(**changes: object) -> HealthReport:
    """Everything that a report can hold, many of some."""
    pictures = [make_health_picture(number) for number in range(30)]
    shapes = [make_health_picture(number, outline_px=(1024 + number, 768), lost_share=0.0) for number in range(30, 50)]
    files = [picture.file for picture in (*pictures, *shapes)]
    few = tuple(Shown(file, 1.83) for file in files[:3])
    tokens = tuple(Shown(file, 91) for file in files)
    pair, all_of_them = Group(tuple(files[2:4]), 6), (Group(tuple(files[:2])), Group(tuple(files)))
    tags = tuple(Counted(f"tag {number}", number) for number in range(70, 0, -1))
    report = HealthReport(
        pictures=[*pictures, *shapes],
        buckets=[BucketUse(512, 512, 50)],
        findings=[
            Finding(kind="no_buckets", level="error", title="It is bad.", remedy="Mend it.", sentences=("x is 7.",)),
            Finding(kind="few", level="warning", title="There are few.", remedy="Add some.", number=3, limit=5),
            Finding(kind="small", level="warning", title="Some are small.", limit=1.5, unit="×", pictures=few),
            Finding(
                kind="long", level="warning", title="Too long.", limit=75, unit="tokens", pictures=tokens
            ),
            Finding(
                kind="ratio", level="warning", title="It is very long.", limit=2, unit=":1",
                pictures=(Shown(files[0], 3.5, 0.714),),
            ),
            Finding(kind="same", level="warning", title="Equal.", groups=all_of_them),
            Finding(kind="near", level="warning", title="Alike.", limit=8, unit="bits", groups=(pair,)),
            Finding(kind="often", level="info", title="These are often.", limit=80, unit="%", counts=tags),
            Finding(kind="soft", level="info", title="Some are soft.", limit=30, unit="sharpness"),
            Finding(kind="grey", level="info", title="Some are grey.", pictures=(Shown(files[5]),)),
        ],
    )  # fmt: skip
    return msgspec.structs.replace(report, **changes)


def health_states() -> dict[str, str]:
    running = JobStatus(state="running", phase="looking at the pictures", phase_done=3, phase_total=50)
    failed = JobStatus(state="failed", message="The disk is full.", hint="Make room.")
    reports = {
        "health": make_health(),
        "healthy": HealthReport(pictures=[make_health_picture(1)], buckets=[BucketUse(512, 512, 1)]),
        "health of nothing": HealthReport(),
        "health unknown": make_health(missing_facts=50),
        "health of one unknown": make_health(missing_facts=1, check=JobStatus(state="stopped")),
        "health check begins": make_health(missing_facts=50, check=JobStatus(state="waiting")),
        "health check": make_health(missing_facts=47, check=running),
        "health check failed": make_health(missing_facts=50, check=failed),
        "health known": make_health(check=JobStatus(state="finished")),
    }
    shown = {name: view.health_html(report, Selection("Cat", "v1"), "T") for name, report in reports.items()}
    return {"health without version": view.health_html(HealthReport(), Selection(), "T"), **shown}
