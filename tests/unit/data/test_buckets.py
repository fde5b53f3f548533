from __future__ import annotations

import json

import pytest

from lora_train.core.errors import DatasetError
from lora_train.data.buckets import bucket_info, choose_bucket, make_buckets

# 512² = 262144, step 64. For each width the height is floor(262144 / width / 64) * 64:
#   256: 1024      320: 819.2 -> 768    384: 682.7 -> 640    448: 585.1 -> 576    512: 512
#   576: 455.1 -> 448   640: 409.6 -> 384   704: 372.4 -> 320   768: 341.3 -> 320
#   832: 315.1 -> 256   896: 292.6 -> 256   960: 273.1 -> 256   1024: 256
# and each of them upright as well.
UPRIGHT_512 = [
    (256, 832),
    (256, 896),
    (256, 960),
    (256, 1024),
    (320, 704),
    (320, 768),
    (384, 640),
    (448, 576),
]
BUCKETS_512 = make_buckets(512, 64, 256, 1024)


class TestMakeBuckets:
    def test_512(self) -> None:
        wide = sorted((height, width) for width, height in UPRIGHT_512)
        assert list(BUCKETS_512) == [*UPRIGHT_512, (512, 512), *wide]

    def test_small_model(self) -> None:
        # 64² = 4096, step 8: 32x128, 40x102->96, 48x85->80, 56x73->72, 64x64, 72x56, 80x51->48,
        # 88x46->40, 96x42->40, 104x39->32, 112x36->32, 120x34->32, 128x32.
        upright = [
            (32, 104),
            (32, 112),
            (32, 120),
            (32, 128),
            (40, 88),
            (40, 96),
            (48, 80),
            (56, 72),
        ]
        wide = sorted((height, width) for width, height in upright)
        assert list(make_buckets(64, 8, 32, 128)) == [*upright, (64, 64), *wide]

    @pytest.mark.parametrize(
        ("base_px", "step_px", "min_px", "max_px"),
        [(512, 64, 256, 1024), (768, 64, 320, 960), (1024, 64, 512, 2048), (600, 64, 250, 1000)],
    )
    def test_what_every_bucket_keeps_to(self, base_px: int, step_px: int, min_px: int, max_px: int) -> None:
        buckets = make_buckets(base_px, step_px, min_px, max_px)
        assert len(set(buckets)) == len(buckets)
        assert any(width == height for width, height in buckets)
        for width_px, height_px in buckets:
            assert width_px % step_px == height_px % step_px == 0
            assert min_px <= min(width_px, height_px)
            assert max(width_px, height_px) <= max_px
            assert width_px * height_px <= base_px**2
            assert (height_px, width_px) in buckets

    def test_limits_that_leave_only_the_square(self) -> None:
        assert make_buckets(512, 64, 512, 512) == ((512, 512),)
        # 500 is no multiple of 64: 448 is the largest one below.
        assert make_buckets(500, 64, 640, 640) == ((448, 448),)

    def test_resolution_below_one_step(self) -> None:
        with pytest.raises(DatasetError, match=r"resolution 48 .* step of 64"):
            make_buckets(48, 64, 64, 128)


def choose(width_px: int, height_px: int, *, upscale_limit: float = 2.0, step_px: int = 64) -> tuple[int, int]:
    return choose_bucket(width_px, height_px, BUCKETS_512, step_px=step_px, upscale_limit=upscale_limit)


class TestChooseBucket:
    @pytest.mark.parametrize(
        ("size", "bucket"),
        [
            ((512, 512), (512, 512)),
            ((4000, 4000), (512, 512)),
            # 3:2 = 1.5; 640/384 = 1.667 is 1.111 times more, 576/448 = 1.286 is 1.167 times less.
            ((1200, 800), (640, 384)),
            ((800, 1200), (384, 640)),
            # 4:3 = 1.333; 576/448 = 1.286 is 1.037 times less.
            ((1600, 1200), (576, 448)),
            # 16:9 = 1.778; 640/384 = 1.667 (1.067 times) is nearer than 704/320 = 2.2 (1.2375).
            ((1920, 1080), (640, 384)),
            # Beyond the flattest bucket, 4:1.
            ((5000, 500), (1024, 256)),
        ],
    )
    def test_nearest_aspect_ratio(self, size: tuple[int, int], bucket: tuple[int, int]) -> None:
        assert choose(*size) == bucket

    def test_upright_and_wide_are_treated_alike(self) -> None:
        for width_px in range(300, 2000, 37):
            wide = choose(width_px, 700, upscale_limit=8.0)
            upright = choose(700, width_px, upscale_limit=8.0)
            assert upright == (wide[1], wide[0])

    def test_ties(self) -> None:
        # Twice as high and half as high are equally far; the larger area wins, then the wider.
        def tie(*buckets: tuple[int, int]) -> tuple[int, int]:
            return choose_bucket(900, 900, buckets, step_px=64, upscale_limit=2.0)

        assert tie((128, 256), (512, 256)) == tie((512, 256), (128, 256)) == (512, 256)
        assert tie((256, 512), (512, 256)) == tie((512, 256), (256, 512)) == (512, 256)
        assert tie((256, 256), (512, 512)) == (512, 512)

    def test_small_pictures_get_a_smaller_bucket(self) -> None:
        assert choose(256, 256) == (512, 512)
        # At most twice: 400x400, rounded down to 384x384.
        assert choose(200, 200) == (384, 384)
        assert choose(256, 256, upscale_limit=1.0) == (256, 256)
        # 300x200 goes to 640x384; covering it needs 640/300 = 2.133 times. Twice is 0.9375 of
        # it: 600x360, rounded down to 576x320.
        assert choose(300, 200) == (576, 320)
        # In binary, 1.28 * 100 is a little less than 128.
        assert choose(100, 100, upscale_limit=1.28) == (128, 128)

    def test_never_enlarged_beyond_the_limit(self) -> None:
        for width_px in range(64, 900, 61):
            for height_px in range(64, 900, 53):
                bucket = choose(width_px, height_px, upscale_limit=1.5)
                if 64 not in bucket:
                    assert max(bucket[0] / width_px, bucket[1] / height_px) <= 1.5
                assert bucket[0] % 64 == bucket[1] % 64 == 0

    def test_at_least_one_step(self) -> None:
        assert choose(8, 8) == (64, 64)
        # 100x25 at most twice is 200x50: 192 and one step.
        assert choose(100, 25) == (192, 64)


class TestBucketInfo:
    def test_form_and_numbers(self) -> None:
        info = bucket_info(
            [
                ((1200, 800), (640, 384), 10),
                ((512, 768), (512, 768), 30),
                ((1000, 1500), (512, 768), 10),
            ]
        )
        assert info["buckets"] == {
            "0": {"resolution": [512, 768], "count": 40},
            "1": {"resolution": [640, 384], "count": 10},
        }
        # |1200/800 - 640/384| = 1.66667 - 1.5 = 1/6, the others 0; over three pictures 1/18.
        assert info["mean_img_ar_error"] == pytest.approx(1 / 18)

    def test_no_pictures(self) -> None:
        assert json.loads(json.dumps(bucket_info([]))) == {"buckets": {}, "mean_img_ar_error": 0.0}
