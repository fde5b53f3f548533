"""The captioning job: what each policy makes of a caption, one caption for flipped copies, and nothing ever lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_train.core.caption_settings import CaptionPolicy, CaptionSettings
from lora_train.core.errors import DatasetError, JobError, ModelError
from lora_train.core.events import EventWriter, Note, Phase
from lora_train.core.files import lock
from lora_train.core.jobs import JobFolder, RequestedEnd
from lora_train.core.specs import CaptionPlan, CaptionSpec
from lora_train.data.captioning import Change, captioned, read_changes, write_captions
from lora_train.data.captions import read_caption, split_tags
from lora_train.data.manifest import Made, Manifest


class Sayer:
    """Says what it is told to say of a picture's name, or else the name; remembers what it was asked."""

    fingerprint = "sayer"

    def __init__(self, **said: str) -> None:
        self.asked: list[str] = []
        self._said = said

    def captions(self, pictures: Iterable[Path]) -> Iterator[str]:
        for path in pictures:
            self.asked.append(path.name)
            yield self._said.get(path.stem, f"a {path.stem}")


class Version:
    """A version's trained set in a workspace, and captioning jobs in this process."""

    def __init__(self, root: Path) -> None:
        self.dataset = root / "projects" / "cat" / "versions" / "v1" / "dataset"
        self.processed = self.dataset / "processed"
        self.trash = root / "trash"
        self.job = JobFolder(root / "jobs" / "caption")
        self.job.path.mkdir(parents=True)

    def put(self, file: str, caption: str | None = None, suffix: str = ".txt") -> Path:
        path = self.processed / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
        if caption is not None:
            path.with_suffix(suffix).write_text(caption, encoding="utf-8")
        return path

    def manifest(self, fallback: str = "", **files: Made) -> None:
        content = Manifest({f"4_cat/{name}.png": made for name, made in files.items()}, "cat", fallback)
        (self.processed / ".made.json").write_bytes(msgspec.json.encode(content))

    def run(
        self,
        captioner: Any,
        policy: CaptionPolicy = "only where empty",
        *,
        files: Sequence[str] = (),
        concept: str = "cat",
    ) -> dict[str, object]:
        spec = CaptionSpec(
            dataset="../../projects/cat/versions/v1/dataset",
            trash="../../trash",
            plan=CaptionPlan(settings=CaptionSettings(policy=policy)),
            files=tuple(files),
            concept=concept,
        )
        events = EventWriter(self.job.events_path)
        try:
            return write_captions(spec, self.job, captioner, events)
        finally:
            events.close()

    def captions(self) -> dict[str, str]:
        pictures = (path for path in sorted(self.processed.rglob("*")) if path.suffix in (".png", ".jpg"))
        return {path.relative_to(self.processed).as_posix(): read_caption(path) for path in pictures}

    def notes(self) -> list[str]:
        return [event.message for event in self.job.events() if isinstance(event, Note)]

    def trashed(self) -> dict[str, str]:
        """Name of each caption file in the trash -> what is in it."""
        files = [path for path in self.trash.rglob("*") if path.suffix in (".txt", ".caption")]
        return {path.name: path.read_text(encoding="utf-8") for path in files}


@pytest.fixture
def version(tmp_path: Path) -> Version:
    return Version(tmp_path)


# --- what becomes of a caption ---


@pytest.mark.parametrize(
    ("policy", "existing", "generated", "caption"),
    [
        ("only where empty", "", "a cat", "a cat"),
        ("only where empty", "sks", "a cat", "a cat"),
        ("only where empty", "sitting", "a cat", "sitting"),
        ("overwrite", "sitting", "a cat", "a cat"),
        ("overwrite", "sitting", "", "sitting"),
        ("overwrite", "", "", "sks"),
        ("prepend", "sitting", "a cat", "sitting, a cat"),
        ("prepend", "sitting, a cat", "a cat", "sitting, a cat"),
        ("prepend", "sitting with a cat", "a cat", "sitting with a cat, a cat"),
        ("prepend", "", "a cat", "a cat"),
        ("prepend", "sks", "a cat", "sks, a cat"),
        ("append", "sitting", "a cat", "a cat, sitting"),
        ("append", "a cat, sitting", "a cat", "a cat, sitting"),
        ("append", "a cat", "a cat", "a cat"),
        ("append", "a cathedral", "a cat", "a cat, a cathedral"),
        ("append", "", "", "sks"),
    ],
)
def test_policies(policy: CaptionPolicy, existing: str, generated: str, caption: str) -> None:
    assert captioned(existing, generated, policy, "sks") == caption


_CAPTIONS = st.lists(st.sampled_from(["a cat", "red", "sks", "sitting on grass"]), max_size=4).map(", ".join)


@given(_CAPTIONS, _CAPTIONS, st.sampled_from(["only where empty", "overwrite", "prepend", "append"]))
def test_the_second_time_changes_nothing_and_no_tag_is_lost(
    existing: str, generated: str, policy: CaptionPolicy
) -> None:
    once = captioned(existing, generated, policy, "sks")
    assert captioned(once, generated, policy, "sks") == once
    assert once != ""
    if policy in ("prepend", "append"):
        assert set(split_tags(once)) - {"sks"} == {*split_tags(existing), *split_tags(generated)} - {"sks"}


# --- which pictures ---


def test_all_that_are_trained(version: Version) -> None:
    version.put("4_cat/a.png")
    version.put("4_cat/b.png", "by hand")
    version.put("4_cat/c.jpg", "cat\n")
    version.put("2_dog/d.png", "")
    version.put("reg/1_thing/e.png")
    assert version.run(Sayer()) == {"captions": 3, "kept": 1}
    assert version.captions() == {
        "2_dog/d.png": "a d",
        "4_cat/a.png": "a a",
        "4_cat/b.png": "by hand",
        "4_cat/c.jpg": "a c",
        "reg/1_thing/e.png": "",
    }


def test_chosen_ones_regularisation_pictures_too(version: Version) -> None:
    for file in ("4_cat/a.png", "4_cat/猫.png", "reg/1_thing/e.png"):
        version.put(file)
    chosen = ["reg/1_thing/e.png", "4_cat/猫.png", "4_cat/猫.png", "4_cat/gone.png", "../../../secret.png"]
    assert version.run(Sayer(), files=chosen) == {"captions": 2, "kept": 0}
    assert version.captions() == {"4_cat/a.png": "", "4_cat/猫.png": "a 猫", "reg/1_thing/e.png": "a e"}
    assert [note.split(" is not among")[0] for note in version.notes()] == ["4_cat/gone.png", "../../../secret.png"]


def test_what_can_not_be_read_is_told_and_left_out(version: Version) -> None:
    version.put("4_cat/a.png")
    version.put("4_cat/b.png").write_bytes(b"a text")
    assert version.run(Sayer()) == {"captions": 1, "kept": 0}
    assert "b.png can't be used" in version.notes()[0]


def test_pictures_that_go_meanwhile_are_passed_over(version: Version) -> None:
    paths = [version.put(f"4_cat/{name}.png") for name in "abc"]

    class Remover(Sayer):
        def captions(self, pictures: Iterable[Path]) -> Iterator[str]:
            for caption in super().captions(pictures):
                paths[1].unlink(missing_ok=True)
                yield caption

    version.run(Remover())
    assert version.captions() == {"4_cat/a.png": "a a", "4_cat/c.png": "a c"}
    assert not paths[1].with_suffix(".txt").exists()


def test_nothing_to_caption(version: Version) -> None:
    with pytest.raises(DatasetError):
        version.run(Sayer())
    version.put("4_cat/a.png", "by hand")
    assert version.run(Sayer()) == {"captions": 0, "kept": 1}
    assert version.notes() == ["All captions stayed as they were: choose another caption policy to replace them."]
    with pytest.raises(ModelError, match="No captioning model was chosen"):
        version.run(None)


# --- flipped copies ---


def test_a_flipped_copy_has_the_caption_of_its_picture(version: Version) -> None:
    for name in ("a", "a-flip", "b", "b-2", "b-flip", "b-2-flip", "c-flip", "own"):
        version.put(f"4_cat/{name}.png")
    left, right = (0, 0, 8, 8), (8, 0, 16, 8)
    version.manifest(
        **{"a": Made("a.png", ""), "a-flip": Made("a.png", "", is_flipped=True)},
        **{"b": Made("b.png", "", box_px=left), "b-flip": Made("b.png", "", is_flipped=True, box_px=left)},
        **{"b-2": Made("b.png", "", box_px=right), "b-2-flip": Made("b.png", "", is_flipped=True, box_px=right)},
        **{"c-flip": Made("c.png", "", is_flipped=True)},
    )
    sayer = Sayer()
    assert version.run(sayer) == {"captions": 8, "kept": 0}
    assert sorted(sayer.asked) == ["a.png", "b-2.png", "b.png", "c-flip.png", "own.png"]
    captions = version.captions()
    for name in ("a", "b", "b-2"):
        assert captions[f"4_cat/{name}-flip.png"] == captions[f"4_cat/{name}.png"] == f"a {name}"
    assert captions["4_cat/c-flip.png"] == "a c-flip"


def test_a_copy_with_a_caption_of_its_own_keeps_it(version: Version) -> None:
    version.put("4_cat/a.png")
    version.put("4_cat/a-flip.png", "looking left")
    version.manifest(**{"a": Made("a.png", ""), "a-flip": Made("a.png", "", is_flipped=True)})
    version.run(Sayer())
    assert version.captions() == {"4_cat/a-flip.png": "looking left", "4_cat/a.png": "a a"}


# --- what was there before ---


@pytest.mark.parametrize(
    ("policy", "written"),
    [
        ("only where empty", {"a": "a a", "b": "sks", "c": "by hand"}),
        ("prepend", {"a": "sks, a a", "b": "sks", "c": "by hand, a c"}),
    ],
)
def test_a_fallback_of_another_trigger_word_is_no_caption(
    version: Version, policy: CaptionPolicy, written: dict[str, str]
) -> None:
    """The update wrote the project's name; a trigger word was typed since then."""
    for name, caption in (("a", "cat"), ("b", "cat"), ("c", "by hand")):
        version.put(f"4_cat/{name}.png", caption)
    version.manifest("cat", **{name: Made(f"{name}.png", "cat") for name in "abc"})
    version.run(Sayer(b=""), policy, concept="sks")
    assert version.captions() == {f"4_cat/{name}.png": caption for name, caption in written.items()}


def test_regularisation_pictures_beside_the_set(version: Version) -> None:
    version.put("4_cat/a.png", "a cat")
    version.put("../reg/1_dog/0001.png", "old")
    version.run(Sayer(), "overwrite", files=["../reg/1_dog/0001.png"])
    assert read_caption(version.dataset / "reg" / "1_dog" / "0001.png") == "a 0001"
    assert version.captions() == {"4_cat/a.png": "a cat"}
    assert version.trashed() == {"0001.txt": "old"}
    assert read_changes(version.job) == {"../reg/1_dog/0001.png": Change("old", "a 0001")}


def test_old_captions_are_in_the_record_and_in_the_trash(version: Version) -> None:
    version.put("4_cat/a.png", "one,\ntwo")
    version.put("4_cat/b.png", "old", suffix=".caption")
    version.put("4_cat/c.png")
    version.run(Sayer(c="the same"), "append")
    assert version.captions() == {"4_cat/a.png": "a a, one, two", "4_cat/b.png": "a b, old", "4_cat/c.png": "the same"}
    assert read_changes(version.job) == {
        "4_cat/a.png": Change("one, two", "a a, one, two"),
        "4_cat/b.png": Change("old", "a b, old"),
        "4_cat/c.png": Change("", "the same"),
    }
    assert version.trashed() == {"a.txt": "one,\ntwo", "b.caption": "old"}
    assert {path.name for path in version.dataset.iterdir()} == {".update-lock", "processed"}


def test_what_a_person_writes_meanwhile_stays(version: Version) -> None:
    version.put("4_cat/a.png")

    class Slow(Sayer):
        def captions(self, pictures: Iterable[Path]) -> Iterator[str]:
            for caption in super().captions(pictures):
                version.put("4_cat/a.png", "by hand")
                yield caption

    assert version.run(Slow()) == {"captions": 0, "kept": 1}
    assert version.captions() == {"4_cat/a.png": "by hand"}


def test_what_stays_the_same_is_not_written(version: Version) -> None:
    path = version.put("4_cat/a.png", "a a")
    before = path.with_suffix(".txt").stat().st_mtime_ns
    assert version.run(Sayer(), "overwrite") == {"captions": 0, "kept": 1}
    assert path.with_suffix(".txt").stat().st_mtime_ns == before
    assert read_changes(version.job) == {}
    assert not version.trash.exists()


def test_stop_keeps_what_is_written(version: Version) -> None:
    for name in "abc":
        version.put(f"4_cat/{name}.png", "old")

    class Stopping(Sayer):
        def captions(self, pictures: Iterable[Path]) -> Iterator[str]:
            for number, caption in enumerate(super().captions(pictures)):
                if number == 1:
                    version.job.request("stop")
                yield caption

    with pytest.raises(RequestedEnd):
        version.run(Stopping(), "overwrite")
    assert list(version.captions().values()) == ["a a", "a b", "old"]
    assert set(read_changes(version.job)) == {"4_cat/a.png", "4_cat/b.png"}
    assert set(version.trashed()) == {"a.txt", "b.txt"}


def test_a_failing_captioner_keeps_what_is_written(version: Version) -> None:
    version.put("4_cat/a.png", "old")
    version.put("4_cat/b.png", "old")

    class Failing(Sayer):
        def captions(self, pictures: Iterable[Path]) -> Iterator[str]:
            yield next(super().captions(pictures))
            raise ModelError("The model is damaged.")

    with pytest.raises(ModelError):
        version.run(Failing(), "overwrite")
    assert version.captions() == {"4_cat/a.png": "a a", "4_cat/b.png": "old"}
    assert version.trashed() == {"a.txt": "old"}


def test_a_killed_job_leaves_its_record_and_the_next_one_tidies_up(version: Version) -> None:
    version.put("4_cat/a.png", "old")
    version.put("4_cat/b.png", "old")

    class Killed(BaseException):
        pass

    class Dying(Sayer):
        def captions(self, pictures: Iterable[Path]) -> Iterator[str]:
            for number, caption in enumerate(super().captions(pictures)):
                if number == 1:
                    raise Killed
                yield caption

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_train.data.captioning._Writing.put_replaced_away", lambda self: None)
        with pytest.raises(Killed):
            version.run(Dying(), "overwrite")
    assert (version.dataset / "captions.old" / "4_cat" / "a.txt").read_text() == "old"
    assert read_changes(version.job) == {"4_cat/a.png": Change("old", "a a")}
    with (version.job.path / "captions.jsonl").open("ab") as record:
        record.write(b'{"before":"old","aft')
    assert set(read_changes(version.job)) == {"4_cat/a.png"}, "killed within a line"
    version.run(Sayer(), "overwrite")
    assert not (version.dataset / "captions.old").exists()
    assert version.trashed() == {"a.txt": "old", "b.txt": "old"}


def test_not_while_an_update_makes_the_set_anew(version: Version) -> None:
    version.put("4_cat/a.png")
    held = lock(version.dataset / ".update-lock")
    assert held is not None
    with held, pytest.raises(JobError, match="being updated already"):
        version.run(Sayer())
    assert version.captions() == {"4_cat/a.png": ""}


def test_progress_is_told(version: Version) -> None:
    for name in "abc":
        version.put(f"4_cat/{name}.png")
    version.run(Sayer())
    phases = [(event.name, event.done, event.total) for event in version.job.events() if isinstance(event, Phase)]
    assert phases == [("writing captions", done, 3) for done in range(4)]
