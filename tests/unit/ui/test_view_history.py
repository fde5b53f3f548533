"""The row of a training's history, and how it differs from another, as HTML."""

from __future__ import annotations

from lora_train.app.history_snapshot import Comparison, HistoryNote
from lora_train.core.history_differences import PictureDifference, SettingDifference
from lora_train.ui.view_history import comparison_html, history_row

JOB = "projects/cat/versions/v1/trains/cat-v1"


def test_the_row_offers_what_can_be_done() -> None:
    row = history_row(JOB, HistoryNote(is_noted=True, others=[("other&1", "<b>猫</b>")]), "other&1", "t&k")
    assert "Repeat exactly" in row
    assert "Undo settings" not in row
    assert '<option class="train-tools-value" value="other&amp;1" selected>&lt;b&gt;猫&lt;/b&gt;</option>' in row
    assert row.count("token=t%26k") == 3


def test_other_versions_are_told_before_repeating() -> None:
    note = HistoryNote(is_noted=True, versions=[SettingDifference("torch", "torch", "2.9", "2.10")], can_undo=True)
    row = history_row(JOB, note, "", "")
    assert "Repeat anyway" in row
    assert "Repeat exactly" not in row
    assert "torch 2.9 → 2.10" in row
    assert "Undo settings" in row


def test_without_a_record_there_is_no_repeating() -> None:
    assert "Repeat" not in history_row(JOB, HistoryNote(), "", "")
    assert history_row(JOB, HistoryNote(is_original=True), "", "") == ""


def test_differences_are_escaped_tables() -> None:
    html = comparison_html(
        Comparison(
            before="a",
            after="b",
            pictures=[PictureDifference("x.png", "caption", "<old>", "new"), PictureDifference("y.png", "added")],
            settings=[SettingDifference("epochs", "Number of epochs", "3", "")],
        )
    )
    assert "&lt;old&gt;" in html
    assert html.count("<table") == 2
    assert "Nothing differs" not in html
    assert "Nothing differs" in comparison_html(Comparison(before="a", after="b"))
    unknown = comparison_html(Comparison(before="a", after="b", unknown=["It is unknown."]))
    assert "Nothing differs" not in unknown
