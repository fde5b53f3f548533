"""Masks: read from transparency or files, cut exactly as their pictures, and never taken for pictures."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_train.core.errors import DatasetError
from lora_train.data.dataset import Dataset, fingerprint, scan_dataset, training_files
from lora_train.data.images import fit_mask_to_bucket, fit_to_bucket, open_alpha, open_picture
from lora_train.data.intake import take_in
from lora_train.data.masks import masks_by_stem, open_mask
from lora_train.data.trained_set import pictures_below
from lora_train.data.uploads import keep_uploads

if TYPE_CHECKING:
    from tests.unit.data.conftest import Version

LEFT, RIGHT = 0, 255


def save(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def halves(size: tuple[int, int] = (16, 8), mode: str = "L") -> Image.Image:
    """Black at the left, white at the right."""
    image = Image.new(mode, size)
    image.paste((255,) * len(image.getbands()), (size[0] // 2, 0, *size))
    return image


def with_alpha(alpha: Image.Image) -> Image.Image:
    image = Image.new("RGBA", alpha.size, (200, 10, 10, 255))
    image.putalpha(alpha)
    return image


def ends(mask: Image.Image | None) -> tuple[int, int]:
    """The upper left and the lower right corner."""
    assert mask is not None
    pixels = np.asarray(mask)
    return int(pixels[0, 0]), int(pixels[-1, -1])


# --- reading ---


def test_alpha_of_all_kinds(tmp_path: Path) -> None:
    grey = Image.merge("LA", (Image.new("L", (16, 8), 90), halves()))
    palette = Image.new("P", (16, 8))
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.paste(1, (8, 0, 16, 8))
    paths = [
        save(tmp_path / "rgba.png", with_alpha(halves())),
        save(tmp_path / "rgba.webp", with_alpha(halves()), lossless=True),
        save(tmp_path / "la.png", grey),
        save(tmp_path / "palette.png", palette, transparency=0),
        save(tmp_path / "palette.gif", palette, transparency=0),
    ]
    for path in paths:
        alpha = open_alpha(path)
        assert alpha is not None, path.name
        assert (alpha.mode, alpha.size, *ends(alpha)) == ("L", (16, 8), LEFT, RIGHT), path.name


def test_what_is_opaque_has_no_mask(tmp_path: Path) -> None:
    assert open_alpha(save(tmp_path / "a.png", Image.new("RGB", (16, 8)))) is None
    assert open_alpha(save(tmp_path / "b.png", with_alpha(Image.new("L", (16, 8), 255)))) is None
    assert open_alpha(save(tmp_path / "c.jpg", Image.new("RGB", (16, 8)))) is None
    wide = Image.fromarray(np.full((8, 16), 40_000, dtype=np.uint16))
    assert open_alpha(save(tmp_path / "d.png", wide)) is None


def test_alpha_is_turned_as_its_picture(tmp_path: Path) -> None:
    image = with_alpha(halves((16, 8)))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    path = save(tmp_path / "a.png", image, exif=exif)
    assert ends(open_alpha(path)) == (RIGHT, LEFT)
    exif[0x0112] = 6  # to be turned by a quarter: what was left is on top
    path = save(tmp_path / "b.png", image, exif=exif)
    alpha = open_alpha(path)
    assert alpha is not None
    assert alpha.size == open_picture(path).size == (8, 16)
    assert ends(alpha) == (LEFT, RIGHT)
    assert np.asarray(alpha)[0, -1] == LEFT


def test_mask_file_goes_before_transparency(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", with_alpha(halves()))
    mask = save(tmp_path / "mask" / "a.png", Image.new("RGB", (16, 8), (128, 128, 128)))
    assert ends(open_mask(path, None)) == (0, 255)
    assert ends(open_mask(path, mask)) == (128, 128)


def test_transparent_parts_of_a_mask_are_black(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("RGB", (16, 8)))
    white = Image.new("RGBA", (16, 8), (255, 255, 255, 255))
    white.putalpha(halves())
    assert ends(open_mask(path, save(tmp_path / "mask" / "a.png", white))) == (0, 255)


def test_a_mask_of_another_size_fits_and_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("RGB", (101, 50)))
    for size in ((202, 100), (50, 25), (25, 12)):
        mask = open_mask(path, save(tmp_path / "mask" / "a.png", halves(size)))
        assert mask is not None
        assert (mask.size, *ends(mask)) == ((101, 50), 0, 255)
    for size in ((50, 50), (101, 101), (202, 50)):
        with pytest.raises(DatasetError, match=f"{size[0]}x{size[1]}.*101x50"):
            open_mask(path, save(tmp_path / "mask" / "a.png", halves(size)))


# --- cutting ---


def _box(size: tuple[int, int], mode: str = "L") -> Image.Image:
    """White from a quarter to five eighths, on black: what is moved or mirrored shows."""
    width, height = size
    image = Image.new(mode, size)
    white = (255,) * len(image.getbands())
    image.paste(white, (width // 4, height // 4, width * 5 // 8, height * 5 // 8))
    return image


def _share_that_differs(mask: np.ndarray, is_box: np.ndarray) -> float:
    assert mask.shape == is_box.shape
    return float(((mask > 127) != is_box).mean())


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(60, 300), st.integers(60, 300)),
    bucket=st.tuples(st.sampled_from([64, 96, 128]), st.sampled_from([64, 96, 128])),
)
def test_mask_is_cut_to_the_bucket_as_its_picture(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    mask = fit_mask_to_bucket(_box(size), bucket)
    picture = fit_to_bucket(_box(size, "RGB"), bucket)
    # Edges may fall on either side of one half, one pixel wide: at most 4 * 40 of 64 * 64 pixels.
    assert _share_that_differs(mask, picture[..., 0] > 127) <= 0.04
    assert mask.min() == 0


@pytest.mark.parametrize("as_is", [False, True])
@pytest.mark.parametrize("from_file", [False, True])
def test_update_cuts_masks_as_pictures(version: Version, from_file: bool, as_is: bool) -> None:
    sizes = {"wide": (400, 100), "tall": (90, 330), "plain": (128, 128), "large": (640, 512)}
    for name, size in sizes.items():
        if from_file:  # a white box on black, and its mask twice as large
            version.upload(f"{name}.jpg", "red", _box(size, "RGB"), quality=95)
            save(version.origin / "mask" / f"{name}.png", _box((size[0] * 2, size[1] * 2)))
        else:  # a red box that is flattened onto white
            version.upload(f"{name}.png", "red", with_alpha(_box(size)))
    assert version.update(flip=True, split=True, focal_crop=True, as_is=as_is) == []
    made = scan_dataset(version.processed)
    assert made.problems == ()
    assert len(made.pictures) == (8 if as_is else 28)  # wide and tall: five tiles and the focal cut each
    for found in made.pictures:
        assert found.mask == f"4_cat/mask/{Path(found.path).stem}.png"
        mask = np.asarray(Image.open(version.processed / found.mask))
        picture = np.asarray(open_picture(version.processed / found.path))
        is_box = picture[..., 0] > 127 if from_file else picture[..., 1] < 128
        assert _share_that_differs(mask, is_box) <= 0.03, found.path
    assert fingerprint(made) == fingerprint(_updated_again(version, as_is))


def _updated_again(version: Version, as_is: bool) -> Dataset:
    version.update(flip=True, split=True, focal_crop=True, as_is=as_is)
    return scan_dataset(version.processed)


def test_update_without_masks_writes_none(version: Version) -> None:
    version.upload("a.png", "red")
    version.update(flip=True)
    assert not list(version.processed.rglob("mask"))


def test_update_leaves_out_and_tells_what_has_a_wrong_mask(version: Version) -> None:
    version.upload("a.png", "red")
    version.upload("b.png", "red")
    save(version.origin / "mask" / "b.png", halves((64, 16)))
    (told,) = version.update()
    assert "b.png" in told
    assert "64x16" in told
    assert list(version.captions()) == ["4_cat/a.png"]


def test_kept_pictures_keep_their_masks(version: Version) -> None:
    version.upload("a.png", "red")
    version.put("3_dog/own.png", "mine")
    own = save(version.processed / "3_dog" / "mask" / "own.png", halves((64, 64))).read_bytes()
    version.update()
    assert (version.processed / "3_dog" / "mask" / "own.png").read_bytes() == own
    assert {picture.path: picture.mask for picture in scan_dataset(version.processed).pictures} == {
        "3_dog/own.png": "3_dog/mask/own.png",
        "4_cat/a.png": "",
    }


# --- they are no pictures ---


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A plain folder, a concept and regularisation pictures, all with masks."""
    for number, folder in enumerate(("", "3_cat", "reg/1_class")):
        save(tmp_path / "in" / folder / "a.png", Image.new("RGB", (16, 8), (number, 9, 9)))
        save(tmp_path / "in" / folder / "Mask" / "a.webp", halves(), lossless=True)
    return tmp_path / "in"


def test_scan_knows_them_as_masks(plain: Path) -> None:
    found = scan_dataset(plain)
    assert found.problems == ()
    assert {picture.path: picture.mask for picture in found.pictures} == {
        "a.png": "Mask/a.webp",
        "3_cat/a.png": "3_cat/Mask/a.webp",
        "reg/1_class/a.png": "",
    }
    assert len(training_files(plain)) == 2
    assert len(pictures_below(plain)) == 3


def test_changed_mask_is_another_dataset(plain: Path) -> None:
    path = plain / "Mask" / "a.webp"
    with_masks = fingerprint(scan_dataset(plain))
    save(path, halves((8, 4)), lossless=True)
    changed = fingerprint(scan_dataset(plain))
    for mask in plain.rglob("Mask/*"):
        mask.unlink()
    without = fingerprint(scan_dataset(plain))
    assert len({with_masks, changed, without}) == 3


def test_masks_of_no_picture_are_told(plain: Path) -> None:
    save(plain / "mask" / "other.png", halves())
    (problem,) = scan_dataset(plain).problems
    assert problem == f"{plain / 'mask' / 'other.png'} is a mask without a picture of the same name."


def test_take_in_brings_masks_along(tmp_path: Path, plain: Path) -> None:
    folders = {name: tmp_path / "v1" / "dataset" / name for name in ("origin", "processed")}
    place = {"origin_dir": folders["origin"], "processed_dir": folders["processed"], "trash_dir": tmp_path / "trash"}
    take_in(scan_dataset(plain), **place, concept="cat")
    made = scan_dataset(folders["processed"])
    assert {picture.path: picture.mask for picture in made.pictures} == {
        "16_cat/a-2.png": "16_cat/mask/a-2.webp",
        "3_cat/a.png": "3_cat/mask/a.webp",
        "reg/1_class/a-3.png": "",
    }
    assert set(masks_by_stem(folders["origin"])) == {"a", "a-2"}
    take_in(scan_dataset(plain), **place, concept="cat")
    assert not (tmp_path / "trash").exists(), "the same again changes nothing"
    save(plain / "Mask" / "a.webp", halves((8, 4)), lossless=True)
    take_in(scan_dataset(plain), **place, concept="cat")
    assert (tmp_path / "trash").exists(), "another mask makes another set"
    assert set(masks_by_stem(folders["origin"])) == {"a", "a-2", "a-4"}


# --- uploads ---


def _zip(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


RED, BLUE = _png(Image.new("RGB", (16, 8), (255, 0, 0))), _png(Image.new("RGB", (16, 8), (0, 0, 255)))
MASK, OTHER_MASK = _png(halves()), _png(halves().transpose(Image.Transpose.FLIP_LEFT_RIGHT))


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return tmp_path / "v1" / "dataset" / "origin"


def _content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_zip_with_masks(tmp_path: Path, origin: Path) -> None:
    archive = _zip(tmp_path / "cat.zip", **{"cat/猫.png": RED, "cat/mask/猫.png": MASK, "cat/b.png": BLUE})
    assert keep_uploads([("cat.zip", archive)], origin, tmp_path / "trash") == []
    assert _content(origin) == {"猫.png": RED, "b.png": BLUE, "mask/猫.png": MASK}
    assert keep_uploads([("cat.zip", archive)], origin, tmp_path / "trash") == []
    assert not (tmp_path / "trash").exists(), "the same again changes nothing"


def test_pictures_and_masks_side_by_side(tmp_path: Path, origin: Path) -> None:
    archive = _zip(tmp_path / "cat.zip", **{"img/a.png": RED, "mask/a.png": MASK})
    assert keep_uploads([("cat.zip", archive)], origin, tmp_path / "trash") == []
    assert _content(origin) == {"a.png": RED, "mask/a.png": MASK}


def test_mask_follows_the_new_name_of_its_picture(tmp_path: Path, origin: Path) -> None:
    for number, content in enumerate([(RED, MASK), (BLUE, OTHER_MASK)]):
        folder = tmp_path / f"in-{number}"
        save(folder / "mask" / "a.png", Image.open(io.BytesIO(content[1])))
        (folder / "a.png").write_bytes(content[0])
        assert keep_uploads([(folder.name, folder)], origin, tmp_path / "trash") == []
    assert set(_content(origin)) == {"a.png", "a-2.png", "mask/a.png", "mask/a-2.png"}
    assert ends(open_mask(origin / "a-2.png", origin / "mask" / "a-2.png")) == (255, 0)


def test_mask_folder_alone_goes_to_the_pictures_that_are_there(tmp_path: Path, origin: Path) -> None:
    origin.mkdir(parents=True)
    (origin / "a.jpg").write_bytes(RED)
    folder = tmp_path / "mask"
    save(folder / "A.png", halves())
    save(folder / "nobody.png", halves())
    (told,) = keep_uploads([("mask", folder)], origin, tmp_path / "trash")
    assert told == "The mask nobody.png is left out: no picture of this name lies beside its folder."
    assert set(_content(origin)) == {"a.jpg", "mask/a.png"}
    save(folder / "a.webp", halves((32, 16)), lossless=True)
    (folder / "nobody.png").unlink()
    (folder / "A.png").unlink()
    assert keep_uploads([("mask", folder)], origin, tmp_path / "trash") == []
    assert set(_content(origin)) == {"a.jpg", "mask/a.webp"}
    assert len(list((tmp_path / "trash").iterdir())) == 1, "the old mask is not lost"


def test_mask_that_is_no_picture_is_told(tmp_path: Path, origin: Path) -> None:
    archive = _zip(tmp_path / "cat.zip", **{"a.png": RED, "mask/a.png": b"no picture"})
    (told,) = keep_uploads([("cat.zip", archive)], origin, tmp_path / "trash")
    assert told.startswith("The mask a.png can't be used")
    assert _content(origin) == {"a.png": RED}
