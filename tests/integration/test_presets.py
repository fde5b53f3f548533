"""A real worker keeps to what the page promised of automatic repeats and of tags that are left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_train.core import events as ev
from lora_train.core.assets import DEMO_PICTURES
from lora_train.core.specs import TrainSpec

if TYPE_CHECKING:
    from tests.integration.conftest import Files, Studio


def two_folders(root: Path) -> Path:
    """Two pictures of `2_sks` and one of `5_others`, all "sks, ..., common"."""
    sources = sorted((DEMO_PICTURES / "1_sks").glob("*.png"))
    for index, (folder, source) in enumerate(zip(("2_sks", "2_sks", "5_others"), sources, strict=False)):
        path = root / folder / source.name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, path)
        path.with_suffix(".txt").write_text(f"sks, tag {index}, common", encoding="utf-8")
    return root


def test_the_worker_does_what_was_promised(studio: Studio, files: type[Files], tmp_path: Path) -> None:
    """Levels of 2 + 2 + 2.5 views: at level 2 they are 2, 2 and 5 repeats, 9 views and steps an epoch."""
    values: dict[str, Any] = {
        "base_model": "demo",
        "epochs": 2,
        "batch_size": 1,
        "aimed_steps": 18,
        "prune_common_tags": 80,
        "rank": 2,
        "generate_previews": False,
        "cpu_threads": 1,
    }
    plan = studio.app.plan_train(name="sks", images=two_folders(tmp_path / "in"), values=values)
    assert plan.total_steps == 18
    spec = plan.job.read_spec()
    assert isinstance(spec, TrainSpec)
    assert sorted(spec.folder_repeats.values()) == [2, 5]
    assert studio.app.training.forecast("sks", "v1").total_steps == 18

    assert studio.run(plan.job).state == "finished"
    totals = {event.total_steps for event in plan.job.events() if isinstance(event, ev.Started) and event.total_steps}
    assert totals == {18}
    assert studio.app.status(plan.job).step == 18
    metadata = files.metadata(files.final(plan.job))
    assert metadata["ss_max_train_steps"] == "18"
    assert metadata["modelspec.trigger_phrase"] == "sks"
    assert {entry["n_repeats"] for entry in json.loads(metadata["ss_dataset_dirs"]).values()} == {2, 5}
    frequency = json.loads(metadata["ss_tag_frequency"])
    assert sorted(tag for tags in frequency.values() for tag in tags) == ["sks", "sks", "tag 0", "tag 1", "tag 2"]
