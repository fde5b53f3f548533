"""Small pieces of HTML that all live parts of the page are made of.

Words and values never share a text node: hosts translate a node only where its whole text is a key of their
dictionary. Values stand in elements of the class `train-tools-value`, which nobody translates; sentences made
elsewhere in those of the class `train-tools-sentence`, which are translated unless they have values in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from html import escape
from typing import Any
from urllib.parse import urlencode

import msgspec

from lora_train.core.numbers import number_text as number_text

BASE = "./train-tools/v1/"
"""Relative, so that the page works below any sub-path."""


def live(name: str, inner: str) -> str:
    """The one element of a live part; the page's script replaces what is inside."""
    role = ' role="status"' if name == "message" else ""
    return f'<div class="train-tools-live" data-live="{escape(name)}"{role}>{inner}</div>'


def words(text: str) -> str:
    """Fixed text, which languages translate."""
    return f"<span>{escape(text)}</span>"


def value(content: object, css_class: str = "") -> str:
    """A number, a name, a path, a caption: never translated."""
    return f'<span class="{_classes("train-tools-value", css_class)}">{escape(str(content))}</span>'


def sentence(text: str) -> str:
    """A sentence made elsewhere: an error, what to do, a note."""
    return f'<span class="train-tools-sentence">{escape(text)}</span>'


def counted(number: int, one: str, many: str) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{value(number)} {words(one if number == 1 else many)}"


def apart(pieces: Iterable[str]) -> str:
    """Pieces on one line with dots between them."""
    return f" {value('·')} ".join(pieces)


def paragraph(inner: str, css_class: str = "") -> str:
    return f'<p class="{_classes("train-tools-line", css_class)}">{inner}</p>'


def sentences(items: Iterable[str], css_class: str = "") -> str:
    """Sentences made elsewhere, as a list; nothing where there are none. Lines of an item are sentences apart."""
    return _list((" ".join(map(sentence, item.splitlines())) for item in items), css_class)


def values(items: Iterable[str]) -> str:
    """Names or paths, as a list; nothing where there are none."""
    return _list(map(value, items), "")


def error_panel(headline: str, message: str, hint: str = "") -> str:
    """What went wrong in words, then as told by whoever noticed, and what to do."""
    told = "".join(paragraph(sentence(line)) for line in (*message.splitlines(), *hint.splitlines()))
    return f'<div class="train-tools-box train-tools-error">{paragraph(words(headline))}{told}</div>'


def badge(text: str, tone: str = "plain") -> str:
    return f'<span class="train-tools-badge train-tools-{tone}">{escape(text)}</span>'


def post_button(
    text: str, route: str, body: Mapping[str, Any], *, done: str = "", confirm: str = "", name: str = "", then: str = ""
) -> str:
    """A button that posts `body` to `route`. `done` is said afterwards, `confirm` asked before.

    `name` is what a screen reader says where `text` is only a sign; `then` is the id of a button that is pressed when
    the route has answered.
    """
    encoded = msgspec.json.encode(body).decode("utf-8")
    optional = {"data-done": done, "data-confirm": confirm, "aria-label": name, "title": name, "data-then": then}
    attributes = attributes_text(
        {"data-post": route, "data-body": encoded, "data-key": f"{route} {encoded}"}
        | {key: text for key, text in optional.items() if text}
    )
    tone = " train-tools-danger" if confirm else ""
    return f'<button type="button" class="train-tools-button{tone}"{attributes}>{escape(text)}</button>'


_MOST_DIGITS = 7
"""Of a page; more are no number that a person meant."""


def pager(param: str, page: int, count: int, length: int, names: tuple[str, str]) -> str:
    """Buttons to the page before and after of so many things; nothing where one page of `length` holds them all.

    `names` are what a screen reader says of the two. The page's script asks with `param` for what was pressed.
    """
    pages = -(-count // length)
    if pages < 2:
        return ""
    turns = (("‹", page - 1, names[0]), ("›", page + 1, names[1]))
    buttons = "".join(_turn(param, *turn) for turn in turns if 1 <= turn[1] <= pages)
    return f'<div class="train-tools-actions">{buttons}{value(f"{page} / {pages}")}</div>'


def page_of(wanted: str, count: int, length: int) -> int:
    """The page, from 1, that an address asks for, as far as it exists."""
    return min(page_wanted(wanted), max(1, -(-count // length)))


def page_wanted(text: str) -> int:
    """The page, from 1, that an address asks for, whether it exists or not."""
    return max(int(text), 1) if text.isdecimal() and len(text) < _MOST_DIGITS else 1


def _turn(param: str, sign: str, page: int, name: str) -> str:
    attributes = attributes_text(
        {"data-param": param, "data-value": page, "data-key": f"{param} {name}", "aria-label": name, "title": name}
    )
    return f'<button type="button" class="train-tools-button"{attributes}>{sign}</button>'


def attributes_text(attributes: Mapping[str, object]) -> str:
    """` name="value"` for each, escaped."""
    return "".join(f' {name}="{escape(str(content))}"' for name, content in attributes.items())


def progress_bar(done: int, total: int) -> str:
    """A bar for `done` of `total`; without a known length (`total` 0) it only says that something goes on."""
    if total <= 0:
        return '<div class="train-tools-bar train-tools-endless" role="progressbar" aria-label="Progress"><i></i></div>'
    done = min(max(done, 0), total)
    percent = 100 * done / total
    return (
        f'<div class="train-tools-bar" role="progressbar" aria-label="Progress" aria-valuemin="0"'
        f' aria-valuemax="{total}" aria-valuenow="{done}"><i style="width:{percent:.1f}%"></i></div>'
    )


def local_time(unix_s: float) -> str:
    """A moment in UTC, which the page's script turns into the person's own time."""
    moment = datetime.fromtimestamp(unix_s, tz=timezone.utc)
    stamp = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    return f'<time class="train-tools-value" datetime="{stamp}">{moment.strftime("%Y-%m-%d %H:%M")} UTC</time>'


def picture_url(query: Mapping[str, str], token: str) -> str:
    """Address of a picture of the dataset; escaped for an attribute by `attributes_text`."""
    return f"{BASE}dataset/picture?{_query(query, token)}"


def job_file_url(job: str, file: str, token: str, *, download: bool = False) -> str:
    """Address of a sample picture or LoRA of a train."""
    query = {"job": job, "file": file} | ({"download": "1"} if download else {})
    return f"{BASE}jobs/file?{_query(query, token)}"


def grid_picture_url(job: str, file: str, token: str, *, size: str = "full") -> str:
    """Address of a grid or single picture of a job that draws previews."""
    return f"{BASE}grids/picture?{_query({'job': job, 'file': file, 'size': size}, token)}"


def download_link(text: str, route: str, query: Mapping[str, str], token: str, name: str = "") -> str:
    """A link that looks like a button, to a file that a route gives; `name` is as in `post_button`."""
    key = " ".join((route, *query.values()))
    about = {"href": f"{BASE}{route}?{_query(query, token)}", "data-key": key, **({"aria-label": name} if name else {})}
    return f'<a class="train-tools-button" download{attributes_text(about)}>{words(text)}</a>'


def rounded_time(seconds: float) -> tuple[str, str]:
    """A number and its unit in words, as exact as a forecast deserves."""
    if seconds < 90:
        count = max(1, round(seconds))
        return str(count), "second" if count == 1 else "seconds"
    if seconds < 5400:
        return str(round(seconds / 60)), "minutes"
    return f"{seconds / 3600:.1f}", "hours"


def duration_text(seconds: float) -> str:
    """`45 s`, `4 min 10 s`, `1 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size_text(size_bytes: int) -> str:
    """`18.4 MB`, in the millions of bytes that file managers show."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 100_000 else f"{size_bytes / 1e3:.0f} kB"


def _list(entries: Iterable[str], css_class: str) -> str:
    listed = "".join(f"<li>{entry}</li>" for entry in entries)
    return f'<ul class="{_classes("train-tools-list", css_class)}">{listed}</ul>' if listed else ""


def _query(query: Mapping[str, str], token: str) -> str:
    return urlencode({**query, **({"token": token} if token else {})})


def _classes(first: str, second: str) -> str:
    return f"{first} {second}".strip()
