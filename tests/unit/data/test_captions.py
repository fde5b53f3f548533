from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from lora_train.core.errors import DatasetError
from lora_train.data.captions import (
    caption_path,
    common_tag,
    compose_caption,
    decode_text,
    read_caption,
    split_tags,
    tag_frequency,
)

JAPANESE = "1girl, 黒髪, 微笑み, 制服"
KANJI_ONLY = "黒髪, 制服, 眼鏡, 図書館, 桜"
HALF_WIDTH = "ｾｰﾗｰ服, ｶﾒﾗ目線, ﾒｶﾞﾈ, 1girl"
CHINESE = "一个女孩，黑色长发，微笑"
CHINESE_TAGS = "女孩, 黑发, 校服, best quality"
TRADITIONAL = "黑色長髮, 圖書館, 微笑"
CYRILLIC = "девушка, чёрные волосы, улыбка"
EMOJI = "🐱 cat, naïve café, 女の子"


class TestDecodeText:
    @pytest.mark.parametrize("text", [JAPANESE, CHINESE, CYRILLIC, EMOJI, "1girl, solo", "a", ""])
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    def test_unicode(self, text: str, encoding: str) -> None:
        assert decode_text(text.encode(encoding)) == text

    @pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
    def test_utf_16_byte_orders(self, encoding: str) -> None:
        mark = "\ufeff".encode(encoding)
        assert decode_text(mark + CHINESE.encode(encoding)) == CHINESE
        # Without a mark it shows by the NUL halves of ASCII characters.
        for text in ("1girl, solo", JAPANESE, CYRILLIC):
            assert decode_text(text.encode(encoding)) == text

    @pytest.mark.parametrize(
        "text",
        [
            JAPANESE,
            KANJI_ONLY,
            HALF_WIDTH,
            "ﾒｶﾞﾈ, 黒髪, 微笑み",
            "ｶﾒﾗ",
            "女の子が公園で犬と遊んでいる。",
            "カメラ目線、①番、～猫～",
            "猫",
        ],
    )
    def test_shift_jis(self, text: str) -> None:
        assert decode_text(text.encode("cp932")) == text

    @pytest.mark.parametrize(
        "text",
        [
            CHINESE,
            CHINESE_TAGS,
            TRADITIONAL,
            "一只猫坐在窗台上，阳光照进来。",
            "高质量，杰作，白色背景",
            "狗",
            "鑫, 淼",
            "囧rz, 㐂, 女孩",
        ],
    )
    def test_gbk(self, text: str) -> None:
        assert decode_text(text.encode("gb18030")) == text

    def test_the_test_sentences_are_hard(self) -> None:
        """Both decoders accept them, so that taking the first that works would fail."""
        assert JAPANESE.encode("cp932").decode("gb18030") != JAPANESE
        assert KANJI_ONLY.encode("cp932").decode("gb18030") != KANJI_ONLY
        assert CHINESE.encode("gb18030").decode("cp932") != CHINESE
        assert CHINESE_TAGS.encode("gb18030").decode("cp932") != CHINESE_TAGS

    def test_western_single_byte_text(self) -> None:
        assert decode_text("naïve café, girl".encode("cp1252")) == "naïve café, girl"

    def test_never_raises(self) -> None:
        for raw in (b"\xff\xff\xff", b"\xff\xfe\x00", b"\x81", b"\x00", b"\xef\xbb\xbf\xff"):
            assert isinstance(decode_text(raw), str)


class TestCaptionFiles:
    def test_txt_wins_over_caption(self, tmp_path: Path) -> None:
        picture = tmp_path / "a.png"
        assert caption_path(picture) is None
        assert read_caption(picture) == ""
        (tmp_path / "a.caption").write_text("from caption", encoding="utf-8")
        assert caption_path(picture) == tmp_path / "a.caption"
        (tmp_path / "a.txt").write_text("from txt", encoding="utf-8")
        assert caption_path(picture) == tmp_path / "a.txt"
        assert read_caption(picture) == "from txt"

    def test_letter_case_of_the_suffix(self, tmp_path: Path) -> None:
        (tmp_path / "a.TXT").write_text("x", encoding="utf-8")
        # On Windows and macOS the name as it was asked for is as good.
        found = caption_path(tmp_path / "a.PNG")
        assert found is not None
        assert found.name == "a.TXT"

    def test_only_the_same_stem_counts(self, tmp_path: Path) -> None:
        for name in ("a.png.txt", "b.txt", "a.json"):
            (tmp_path / name).write_text("x", encoding="utf-8")
        assert caption_path(tmp_path / "a.png") is None
        # A name with dots keeps all but the last part.
        (tmp_path / "a.v2.txt").write_text("dots", encoding="utf-8")
        assert read_caption(tmp_path / "a.v2.png") == "dots"

    def test_names_in_any_script_and_unicode_form(self, tmp_path: Path) -> None:
        for stem in ("自作", "Кот", "🐱 cat"):
            (tmp_path / f"{stem}.txt").write_bytes(JAPANESE.encode("cp932"))
            assert read_caption(tmp_path / f"{stem}.png") == JAPANESE
        # が as one code point (NFC) and as か plus a mark (NFD, as macOS writes it).
        (tmp_path / "か\u3099.txt").write_text("x", encoding="utf-8")
        assert read_caption(tmp_path / "\u304c.png") == "x"

    def test_lines_become_one(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"\r\n  1girl, solo,\r\n\r\n smile \n")
        assert read_caption(tmp_path / "a.png") == "1girl, solo, smile"

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="nowhere can't be listed"):
            read_caption(tmp_path / "nowhere" / "a.png")

    def test_caption_that_can_not_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").mkdir()
        with pytest.raises(DatasetError, match=r"a\.txt can't be read"):
            read_caption(tmp_path / "a.png")


def test_split_tags() -> None:
    assert split_tags(" 1girl,solo , , long hair,") == ["1girl", "solo", "long hair"]
    assert split_tags("") == []
    # Full-width commas are part of a sentence.
    assert split_tags("一个女孩，黑色长发, 微笑") == ["一个女孩，黑色长发", "微笑"]


@pytest.mark.parametrize(
    ("captions", "tag"),
    [
        (["sks, red", "blue, sks", "sks"], "sks"),
        (["a cat, sks", "sks, a cat"], "a cat"),
        (["sks, red", "a dog"], ""),
        (["sks", ""], ""),
        (["猫、赤", "猫、赤"], "猫、赤"),
        ([""], ""),
        ([], ""),
    ],
)
def test_common_tag(captions: list[str], tag: str) -> None:
    assert common_tag(captions) == tag


def test_tag_frequency() -> None:
    captions = ["1girl, Solo", "1GIRL, smile, ", "", "solo"]
    assert tag_frequency(captions) == {"1girl": 2, "solo": 2, "smile": 1}
    assert list(tag_frequency(captions)) == ["1girl", "solo", "smile"]


def compose(caption: str, seed: int = 0, **changes: Any) -> str:
    options: dict[str, Any] = {
        "trigger_word": "",
        "shuffle": False,
        "keep_tags": 0,
        "dropout": 0.0,
        **changes,
    }
    return compose_caption(caption, random=random.Random(seed), **options)


class TestComposeCaption:
    def test_nothing_asked_for_changes_nothing(self) -> None:
        assert compose("A cat,sitting.  It sleeps,") == "A cat,sitting.  It sleeps,"
        assert compose("") == ""

    def test_trigger_word_stands_first(self) -> None:
        assert compose("1girl, solo", trigger_word="sks") == "sks, 1girl, solo"
        assert compose("", trigger_word="sks") == "sks"
        assert compose("女の子, 笑顔", trigger_word="自作") == "自作, 女の子, 笑顔"

    def test_trigger_word_that_is_there_already(self) -> None:
        assert compose("sks, 1girl", trigger_word="sks") == "sks, 1girl"
        assert compose("1girl, SKS, solo", trigger_word="sks") == "sks, 1girl, solo"
        assert compose("photo of sks dog, park", trigger_word="sks") == "photo of sks dog, park"
        # A part of another word is not the word.
        assert compose("asksb, dog", trigger_word="sks") == "sks, asksb, dog"
        assert compose("a (c++) dog", trigger_word="c++") == "a (c++) dog"

    def test_shuffle_keeps_the_first_tags(self) -> None:
        caption = "a, b, c, d, e, f, g, h"
        seen: set[str] = set()
        for seed in range(20):
            tags = compose(caption, seed, shuffle=True, keep_tags=2).split(", ")
            assert tags[:2] == ["a", "b"]
            assert sorted(tags) == list("abcdefgh")
            seen.add(", ".join(tags))
        # 20 of 720 orders: equal ones would be a rare accident, and the seeds are fixed.
        assert len(seen) > 15

    def test_trigger_word_does_not_count_as_a_kept_tag(self) -> None:
        for seed in range(20):
            tags = compose("a, b, sks, c, d, e", seed, shuffle=True, keep_tags=1, trigger_word="sks").split(", ")
            assert tags[:2] == ["sks", "a"]
            assert sorted(tags[2:]) == ["b", "c", "d", "e"]

    def test_keep_tags_beyond_the_last_one(self) -> None:
        assert compose("a, b", shuffle=True, keep_tags=9) == "a, b"

    def test_dropout_drops_everything(self) -> None:
        for seed in range(20):
            assert compose("a, b", seed, dropout=1.0, trigger_word="sks") == ""
            assert compose("a, b", seed, dropout=0.0) == "a, b"

    def test_dropout_rate(self) -> None:
        draw = random.Random(3)
        dropped = sum(
            compose_caption("a", trigger_word="", shuffle=False, keep_tags=0, dropout=0.3, random=draw) == ""
            for _ in range(10_000)
        )
        # 3000 expected, standard deviation sqrt(10000 * 0.3 * 0.7) = 46; five of them allowed.
        assert abs(dropped - 3000) < 230

    def test_order_of_the_draws(self) -> None:
        """One number for dropout whatever its rate, then the shuffle; nothing else."""
        expected = random.Random(5)
        expected.random()
        tags = ["b", "c", "d", "e"]
        expected.shuffle(tags)
        draw = random.Random(5)
        result = compose_caption("a, b, c, d, e", trigger_word="", shuffle=True, keep_tags=1, dropout=0.0, random=draw)
        assert result == ", ".join(["a", *tags])
        assert draw.getstate() == expected.getstate()

        for dropout in (0.0, 1.0):
            once = random.Random(5)
            compose_caption("a, b", trigger_word="x", shuffle=False, keep_tags=0, dropout=dropout, random=once)
            one_draw = random.Random(5)
            one_draw.random()
            assert once.getstate() == one_draw.getstate()
