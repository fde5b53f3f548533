"""Times *Update Dataset* on photographs of 12 megapixels, in a worker process that the App starts; one JSON line."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).parents[2]
SIZE_PX = (4000, 3000)
TURNED_EVERY = 3
"""Every third one is stored on its side, as phones do."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--on", action="append", default=[], help="an option to switch on, such as focal_crop or flip")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder) / "photos", given.pictures)
        print(json.dumps(measure(Path(folder) / "workspace", photos, given.on)), flush=True)
    return 0


def make_photos(folder: Path, count: int) -> list[Path]:
    """JPEGs of things, their parts, fine detail and the noise of a sensor: 4 to 5 MB each, as cameras write them."""
    folder.mkdir()
    random = np.random.default_rng(0)
    base = np.zeros((SIZE_PX[1], SIZE_PX[0], 3), dtype=np.float32)
    for side, strength in ((6, 180), (40, 90), (200, 50), (1000, 24)):
        coarse = Image.fromarray(random.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8))
        base += (np.asarray(coarse.resize(SIZE_PX, Image.Resampling.BICUBIC)) / np.float32(255) - 0.5) * strength
    base += random.standard_normal(base.shape, dtype=np.float32) * 6
    pixels = (base + 128).clip(0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    paths: list[Path] = []
    for number in range(count):
        moved = np.roll(pixels, (int(random.integers(3000)), int(random.integers(4000))), (0, 1))
        moved = np.ascontiguousarray(moved[..., random.permutation(3)])
        paths.append(folder / f"photo {number}.jpg")
        Image.fromarray(moved).save(paths[-1], quality=92, exif=exif if number % TURNED_EVERY == 0 else Image.Exif())
    return paths


def measure(workspace: Path, photos: list[Path], options: list[str]) -> dict[str, object]:
    """Upload all, update, and watch the worker: wall and CPU seconds, and its memory as it goes on."""
    from lora_train.app import App
    from lora_train.core.events import Finished, Phase, Started
    from lora_train.core.host import NoHost
    from lora_train.core.jobs import JobFolder
    from lora_train.core.workspace import Workspace
    from lora_train.launch import launcher

    app = App(Workspace(workspace), NoHost())
    app.projects.create("bench")
    app.projects.create_version("bench", "v1")
    assert app.datasets.add("bench", "v1", [(path.name, path) for path in photos]) == []
    app.settings.save("bench", "v1", dataset=dict.fromkeys(options, True))
    job = JobFolder(workspace / app.datasets.start_update("bench", "v1"))
    version = app.workspace.find_version("bench", "v1")
    process: psutil.Process | None = None
    seen: list[tuple[int, int]] = []  # (pictures done, bytes of memory)
    cpu_s = 0.0
    while app.datasets.is_updating(version):
        process = process or launcher.process_of(job)
        phases = [event for event in job.events() if isinstance(event, Phase)]
        try:
            if process is not None:
                seen.append((phases[-1].done if phases else 0, process.memory_info().rss))
                times = process.cpu_times()
                cpu_s = times.user + times.system
        except psutil.NoSuchProcess:
            break
        time.sleep(0.1)
    events = job.events()
    (started,) = [event for event in events if isinstance(event, Started)]
    (finished,) = [event for event in events if isinstance(event, Finished)]
    wall_s = finished.t - started.t
    quarter = len(photos) / 4
    return {
        "command": " ".join(["update_dataset.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} cores",
        "pictures": len(photos),
        "made": finished.result["pictures"],
        "seconds": round(wall_s, 1),
        "pictures_per_s": round(len(photos) / wall_s, 2),
        "cpu_s": round(cpu_s, 1),
        "cpu_utilisation": round(cpu_s / wall_s / (psutil.cpu_count() or 1), 2),
        "peak_rss_mb_first_quarter": round(max(rss for done, rss in seen if done <= quarter) / 2**20),
        "peak_rss_mb_last_quarter": round(max(rss for done, rss in seen if done >= 3 * quarter) / 2**20),
    }


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
