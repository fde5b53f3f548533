from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from lora_train.core.errors import DatasetError
from lora_train.data.dataset import (
    Dataset,
    Picture,
    auto_repeats,
    fingerprint,
    own_pictures,
    regularisation_folders,
    scan_dataset,
    with_regularisation,
)


def put(path: Path, caption: str | None = None, *, size: tuple[int, int] = (16, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 10, 10)).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def by_path(dataset: Dataset) -> dict[str, Picture]:
    return {picture.path: picture for picture in dataset.pictures}


class TestPlainFolder:
    def test_pictures_and_captions(self, tmp_path: Path) -> None:
        put(tmp_path / "b.png", "1girl,\nsolo", size=(30, 20))
        put(tmp_path / "A.JPG")
        (tmp_path / "a.npz").write_bytes(b"a cache of another program")
        dataset = scan_dataset(tmp_path, repeats=3)
        assert dataset.root == tmp_path
        assert dataset.problems == ()
        assert [picture.path for picture in dataset.pictures] == ["A.JPG", "b.png"]
        picture = dataset.pictures[1]
        digest = hashlib.blake2b(
            (tmp_path / "b.png").read_bytes() + (tmp_path / "b.txt").read_bytes(), digest_size=16
        ).hexdigest()
        assert picture == Picture(
            path="b.png",
            folder="",
            concept="",
            repeats=3,
            is_regularisation=False,
            caption="1girl, solo",
            width_px=30,
            height_px=20,
            digest=digest,
            content=hashlib.blake2b((tmp_path / "b.png").read_bytes(), digest_size=16).hexdigest(),
        )
        assert dataset.pictures[0].caption == ""

    def test_size_is_that_of_the_upright_picture(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
        picture = scan_dataset(tmp_path).pictures[0]
        assert (picture.width_px, picture.height_px) == (20, 30)

    def test_names_in_any_script(self, tmp_path: Path) -> None:
        names = ["自作.png", "Кот.png", "🐱 cat.png", "か\u3099.png"]
        for name in names:
            put(tmp_path / name, caption=f"caption of {name}")
        found = by_path(scan_dataset(tmp_path))
        # Some file systems change the Unicode form of a name.
        plain = {unicodedata.normalize("NFC", path): found[path].caption for path in found}
        assert plain == {unicodedata.normalize("NFC", name): f"caption of {name}" for name in names}

    def test_order_does_not_depend_on_the_file_system(self, tmp_path: Path) -> None:
        for name in ["c.png", "a.png", "10_x/b.png", "B.png", "10_x/a.png"]:
            put(tmp_path / name)
        paths = [picture.path for picture in scan_dataset(tmp_path).pictures]
        assert paths == ["10_x/a.png", "10_x/b.png", "B.png", "a.png", "c.png"]

    def test_hidden_files_and_folders_are_ignored(self, tmp_path: Path) -> None:
        put(tmp_path / "a.png")
        for name in ["._a.png", ".thumbnails/a.png", "__MACOSX/a.png"]:
            put(tmp_path / name)
        dataset = scan_dataset(tmp_path)
        assert list(by_path(dataset)) == ["a.png"]
        assert dataset.problems == ()


class TestKohyaLayout:
    def test_repeats_and_concepts_come_from_the_folders(self, tmp_path: Path) -> None:
        put(tmp_path / "10_my cat" / "a.png")
        put(tmp_path / "3_自作" / "b.png")
        put(tmp_path / "reg" / "2_cat" / "r.png")
        put(tmp_path / "reg" / "dogs" / "s.png")
        put(tmp_path / "reg" / "t.png")
        found = by_path(scan_dataset(tmp_path))
        assert {path: (p.folder, p.concept, p.repeats, p.is_regularisation) for path, p in found.items()} == {
            "10_my cat/a.png": ("10_my cat", "my cat", 10, False),
            "3_自作/b.png": ("3_自作", "自作", 3, False),
            "reg/2_cat/r.png": ("reg/2_cat", "cat", 2, True),
            "reg/dogs/s.png": ("reg/dogs", "dogs", 1, True),
            "reg/t.png": ("reg", "", 1, True),
        }

    def test_given_repeats_replace_those_of_training_folders_only(self, tmp_path: Path) -> None:
        put(tmp_path / "10_cat" / "a.png")
        put(tmp_path / "plain" / "b.png")
        put(tmp_path / "reg" / "2_cat" / "r.png")
        found = by_path(scan_dataset(tmp_path, repeats=5))
        assert {path: picture.repeats for path, picture in found.items()} == {
            "10_cat/a.png": 5,
            "plain/b.png": 5,
            "reg/2_cat/r.png": 2,
        }

    def test_folders_without_a_number_share_the_automatic_repeats(self, tmp_path: Path) -> None:
        for number in range(12):
            put(tmp_path / "one" / f"{number}.png")
            put(tmp_path / "two" / f"{number}.png")
        put(tmp_path / "7_cat" / "a.png")
        found = by_path(scan_dataset(tmp_path))
        # 24 pictures without a number: 160 / 24 = 6.67.
        assert found["one/0.png"].repeats == found["two/0.png"].repeats == 7
        assert found["7_cat/a.png"].repeats == 7
        assert found["one/0.png"].concept == "one"

    def test_zero_repeats_skip_a_folder_and_say_so(self, tmp_path: Path) -> None:
        put(tmp_path / "0_off" / "a.png")
        put(tmp_path / "1_on" / "b.png")
        dataset = scan_dataset(tmp_path, repeats=4)
        assert list(by_path(dataset)) == ["1_on/b.png"]
        assert len(dataset.problems) == 1
        assert "0_off is skipped" in dataset.problems[0]

    def test_deeper_folders_are_mentioned(self, tmp_path: Path) -> None:
        put(tmp_path / "1_cat" / "a.png")
        put(tmp_path / "1_cat" / "more" / "b.png")
        dataset = scan_dataset(tmp_path)
        assert list(by_path(dataset)) == ["1_cat/a.png"]
        assert len(dataset.problems) == 1
        assert "more is not searched" in dataset.problems[0]


@pytest.mark.parametrize(
    ("picture_count", "repeats"),
    # 160 / n, rounded, within 1 and 16.
    [(1, 16), (10, 16), (11, 15), (20, 8), (60, 3), (100, 2), (160, 1), (5000, 1)],
)
def test_auto_repeats(picture_count: int, repeats: int) -> None:
    assert auto_repeats(picture_count) == repeats


class TestProblems:
    def test_links_that_lead_nowhere(self, tmp_path: Path) -> None:
        put(tmp_path / "good.png", "fine")
        for name, target in (
            ("loop.png", "loop.png"),
            ("none.png", "none"),
            ("below.png", "good.png/x"),
            ("5_x", "5_x"),
        ):
            (tmp_path / name).symlink_to(tmp_path / target)
        assert [*by_path(scan_dataset(tmp_path))] == ["good.png"]

    def test_unusable_files_are_named_and_skipped(self, tmp_path: Path) -> None:
        good = put(tmp_path / "good.png", "fine")
        (tmp_path / "text.png").write_text("not a picture", encoding="utf-8")
        (tmp_path / "empty.JPG").write_bytes(b"")
        # All of the header and a part of the pixels: only decoding shows that it is cut short.
        noise = Image.effect_noise((64, 64), 90)
        noise.save(tmp_path / "cut.jpg")
        (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-400])
        (tmp_path / "orphan.txt").write_text("nobody's", encoding="utf-8")
        put(tmp_path / "locked.png")
        (tmp_path / "locked.txt").mkdir()

        dataset = scan_dataset(tmp_path)
        # A folder called locked.txt is no caption.
        assert list(by_path(dataset)) == [good.name, "locked.png"]
        text = "\n".join(dataset.problems)
        assert len(dataset.problems) == 4
        assert "text.png can't be used: it is not a picture" in text
        assert "empty.JPG can't be used: the file is empty" in text
        assert "cut.jpg can't be used: it is damaged or cut short" in text
        assert "orphan.txt is a caption without a picture" in text

    def test_caption_of_an_unusable_picture_is_no_orphan(self, tmp_path: Path) -> None:
        put(tmp_path / "good.png")
        (tmp_path / "bad.png").write_bytes(b"")
        (tmp_path / "bad.txt").write_text("x", encoding="utf-8")
        assert len(scan_dataset(tmp_path).problems) == 1

    def test_automatic_repeats_count_usable_pictures_only(self, tmp_path: Path) -> None:
        for number in range(20):
            put(tmp_path / f"{number}.png")
            (tmp_path / f"bad{number}.png").write_bytes(b"")
        # 160 / 20 = 8; with the unusable ones it would be 4.
        assert {picture.repeats for picture in scan_dataset(tmp_path).pictures} == {8}

    def test_no_usable_picture(self, tmp_path: Path) -> None:
        put(tmp_path / "reg" / "r.png")
        for number in range(7):
            (tmp_path / f"{number}.png").write_bytes(b"")
        with pytest.raises(DatasetError) as caught:
            scan_dataset(tmp_path)
        lines = caught.value.message.splitlines()
        assert str(tmp_path) in lines[0]
        assert [line.count("the file is empty") for line in lines] == [0, 1, 1, 1, 1, 1, 0]
        assert lines[-1] == "... and 2 more."
        assert ".png" in caught.value.hint
        assert ".webp" in caught.value.hint

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="nowhere can't be read"):
            scan_dataset(tmp_path / "nowhere")

    def test_a_file_instead_of_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match=r"a\.png can't be read"):
            scan_dataset(put(tmp_path / "a.png"))

    def test_name_that_is_not_unicode(self, tmp_path: Path) -> None:
        put(tmp_path / "good.png")
        try:
            (tmp_path / "bad\udcff.png").write_bytes((tmp_path / "good.png").read_bytes())
        except (OSError, UnicodeEncodeError):
            pytest.skip("this file system has only Unicode names")
        dataset = scan_dataset(tmp_path)
        assert list(by_path(dataset)) == ["good.png"]
        assert "bad?.png can't be used: its name is not valid Unicode" in dataset.problems[0]
        msgspec.json.encode(dataset.problems)


class TestFingerprint:
    def test_same_content_gives_the_same(self, tmp_path: Path) -> None:
        for root in ("one", "two"):
            put(tmp_path / root / "2_cat" / "a.png", "caption")
        one, two = (scan_dataset(tmp_path / root) for root in ("one", "two"))
        assert fingerprint(one) == fingerprint(two)
        assert len(fingerprint(one)) == 32

    def test_every_change_shows(self, tmp_path: Path) -> None:
        picture = put(tmp_path / "2_cat" / "a.png", "caption")
        put(tmp_path / "2_cat" / "b.png")
        seen = [fingerprint(scan_dataset(tmp_path))]

        picture.with_suffix(".txt").write_text("another", encoding="utf-8")
        seen.append(fingerprint(scan_dataset(tmp_path)))
        Image.new("RGB", (16, 8), (0, 0, 255)).save(picture)
        seen.append(fingerprint(scan_dataset(tmp_path)))
        seen.append(fingerprint(scan_dataset(tmp_path, repeats=3)))
        picture.rename(picture.with_name("c.png"))
        seen.append(fingerprint(scan_dataset(tmp_path)))
        (tmp_path / "2_cat" / "b.png").unlink()
        seen.append(fingerprint(scan_dataset(tmp_path)))
        put(tmp_path / "reg" / "b.png")
        seen.append(fingerprint(scan_dataset(tmp_path)))
        assert len(set(seen)) == len(seen)

    def test_unicode_form_of_a_name_does_not_matter(self, tmp_path: Path) -> None:
        put(tmp_path / "nfc" / "\u304c.png")
        put(tmp_path / "nfd" / "か\u3099.png")
        nfc, nfd = (scan_dataset(tmp_path / form) for form in ("nfc", "nfd"))
        assert fingerprint(nfc) == fingerprint(nfd)


class TestBesideATrainedSet:
    """`dataset/reg` belongs to `dataset/processed`, also in a workspace of the original extension."""

    def test_both_places_are_read(self, tmp_path: Path) -> None:
        root = tmp_path / "v1" / "dataset" / "processed"
        put(root / "4_cat" / "a.png", "a cat")
        put(root / "reg" / "2_animal" / "a.png", "old")
        put(root.with_name("reg") / "3_animal" / "a.png", "new")
        put(root.with_name("reg") / "loose.png")
        put(root.with_name("reg") / "0_never" / "a.png")
        dataset = scan_dataset(root, repeats=7)
        told = [(own.path, own.folder, own.concept, own.repeats, own.is_regularisation) for own in dataset.pictures]
        assert told == [
            ("4_cat/a.png", "4_cat", "cat", 7, False),
            ("reg/2_animal/a.png", "reg/2_animal", "animal", 2, True),
            ("../reg/3_animal/a.png", "../reg/3_animal", "animal", 3, True),
            ("../reg/loose.png", "../reg", "", 1, True),
        ]
        assert all((dataset.root / own.path).is_file() for own in dataset.pictures)
        assert [problem.split(" is skipped")[0] for problem in dataset.problems] == [
            str(tmp_path / "v1" / "dataset" / "reg" / "0_never")
        ]

    def test_damage_is_told_with_a_plain_path(self, tmp_path: Path) -> None:
        root = tmp_path / "dataset" / "processed"
        put(root / "a.png")
        bad = put(root.with_name("reg") / "1_animal" / "b.png")
        bad.write_bytes(bad.read_bytes()[:40])
        (problem,) = scan_dataset(root).problems
        assert str(bad) in problem
        assert ".." not in problem

    @pytest.mark.parametrize("root", ["pictures/processed", "dataset/pictures", "dataset/processed.new"])
    def test_no_other_folder_has_a_neighbour(self, tmp_path: Path, root: str) -> None:
        put(tmp_path / root / "a.png")
        put((tmp_path / root).with_name("reg") / "1_animal" / "b.png")
        assert [own.path for own in scan_dataset(tmp_path / root).pictures] == ["a.png"]
        assert regularisation_folders(tmp_path / root) == []

    def test_what_is_beside_changes_the_fingerprint_and_nothing_else_does(self, tmp_path: Path) -> None:
        """A set without neighbours has the fingerprint that it always had: that of the same files elsewhere."""
        root = tmp_path / "dataset" / "processed"
        for folder in (root, tmp_path / "elsewhere"):
            put(folder / "4_cat" / "a.png", "a cat")
            put(folder / "reg" / "1_animal" / "b.png", "an animal")
        before = fingerprint(scan_dataset(root))
        assert before == fingerprint(scan_dataset(tmp_path / "elsewhere"))
        put(root.with_name("reg") / "1_animal" / "c.png", "an animal")
        after = scan_dataset(root)
        assert fingerprint(after) != before
        assert fingerprint(own_pictures(after)) == before
        # As a worker reads it, from its own folder.
        job_dir = tmp_path / "trains" / "cat"
        job_dir.mkdir(parents=True)
        assert fingerprint(scan_dataset(job_dir / "../../dataset/processed")) == fingerprint(after)

    def test_without_training_pictures_there_is_no_dataset(self, tmp_path: Path) -> None:
        root = tmp_path / "dataset" / "processed"
        put(root.with_name("reg") / "1_animal" / "b.png")
        with pytest.raises(DatasetError):
            scan_dataset(root)
        assert [(own.folder, own.name, own.repeats, own.count) for own in regularisation_folders(root)] == [
            ("../reg/1_animal", "animal", 1, 1)
        ]

    def test_other_regularisation_pictures_take_their_places(self, tmp_path: Path) -> None:
        root = tmp_path / "dataset" / "processed"
        put(root / "a.png")
        put(root.with_name("reg") / "1_animal" / "b.png")
        dataset = scan_dataset(root)
        one = dataset.pictures[1]
        more = [msgspec.structs.replace(one, path=f"../reg/1_animal/{stem}.png") for stem in "ca"]
        paths = [own.path for own in with_regularisation(dataset, [one, *more]).pictures]
        assert paths == ["a.png", "../reg/1_animal/a.png", "../reg/1_animal/b.png", "../reg/1_animal/c.png"]
        assert with_regularisation(dataset, ()).pictures == dataset.pictures[:1]
