"""Every file that a paused training goes on from, cut off or with a wrong bit: the resume ends with the bytes of a
straight run, or tells in a sentence why it can't.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.damaging import damages, half_written, lost, precious, temporary
from tests.faults.forge import Forge

SEED = 11
"""Of the damaged places."""
FILES = {
    "job": "job.json",
    "events": "events.jsonl",
    "limits": "limits.json",
    "origin": "made_from.json",
    "versions": "versions.json",
    "older state": "state/*08.safetensors",
    "newer state": "state/*10.safetensors",
    "lora": "*-000001.safetensors",
    "picture": "../../dataset/processed/**/*.png",
    "caption": "../../dataset/processed/**/*.txt",
    "latents": "../../../../../../cache/latents/*",
    "texts": "../../../../../../cache/texts/*",
    "hashes": "../../../../../../cache/hashes.json",
    "base model": "../../../../../../../models/*.safetensors",
}
"""All that a resume reads, as seen from the training's folder; of several alike the first."""


@pytest.mark.parametrize("kind", FILES)
def test_a_resume_from_damaged_files_equals_or_tells(
    forge: Forge, share: Callable[[int], int], count: Callable[[str, int], None], kind: str
) -> None:
    forge.put_back()
    file = forge.file(FILES[kind])
    cases = [*damages(file.read_bytes(), SEED)]
    chosen = cases if share(10) == 10 else cases[[*FILES].index(kind) % len(cases) :][:1]
    for what, content in chosen:
        forge.put_back()
        before = {kept: digest for kept, digest in precious(forge.place).items() if forge.place / kept != file}
        file.write_bytes(content)
        where = f"{file.name}, {what}"
        try:
            outcome = forge.outcome(but=file.name)
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from error
        gone = [path for path in lost(before, forge.place) if "/cache/" not in path and "/state/" not in path]
        assert gone == [], f"{where}: {outcome}"
        wrong = [path for path in half_written(forge.place) if forge.place / path != file and "/trash/" not in path]
        assert [path for path in wrong if not path.endswith(".damaged")] == [], where
        assert [path for path in temporary(forge.place) if not path.endswith(".damaged")] == [], where
        forge.next_start()
        count("equal" if outcome == "equal" else "told", 1)


def test_an_undamaged_resume_equals(forge: Forge) -> None:
    forge.put_back()
    assert forge.outcome() == "equal"
