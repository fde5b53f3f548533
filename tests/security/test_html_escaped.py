"""Names, captions, tags, notes, log lines and errors stay text in every piece of HTML that we make.

Every public function of the views is called with everything that its arguments can hold, all texts hostile: the HTML
must have exactly the elements and attributes that it has with harmless texts.
"""

from __future__ import annotations

import collections.abc
import importlib
import inspect
import pkgutil
import random
import types
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest

pytest.importorskip("gradio")

import lora_train.ui
from lora_train.report.facts import ReportFacts
from lora_train.report.page import report_html

SHAPES = 100
"""Of the arguments of each function."""
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "'><svg onload=alert(1)>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)' autofocus='",
    "</div></span></p></li></ul></pre></style><b>",
    "</title><script>alert(1)</script>",
    "--><script>alert(1)</script><!--",
    "]]><script>alert(1)</script>",
    "javascript:alert(1)",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;img src=x onerror=alert(1)&#62;",
    "＜img src=x onerror=alert(1)＞",
    "<\u202eimg src=x>",
    "{{constructor.constructor('alert(1)')()}}",
    "<a href=data:text/html,<script>alert(1)</script>>x</a>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<style>*{background:url(javascript:alert(1))}</style>",
    "x\u0000<script>",
    "`><img src=x onerror=`alert(1)`",
)
HARMLESS = "word"
_VIEWS = sorted(
    (module.name for module in pkgutil.iter_modules(lora_train.ui.__path__) if module.name.startswith("view")),
)
_ADDRESSES = ("href", "src", "srcset", "action", "formaction", "poster", "xlink:href")
_FORBIDDEN_TAGS = {"script", "iframe", "object", "embed", "link", "meta", "base", "form", "style"}


class _Skeleton(HTMLParser):
    """Elements with the names of their attributes, in order; addresses and texts apart."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, ...]] = []
        self.addresses: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *(name for name, _ in attrs)))
        self.addresses += [value or "" for name, value in attrs if name in _ADDRESSES]

    def handle_endtag(self, tag: str) -> None:
        self.elements.append(("/" + tag,))

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment",))

    def handle_decl(self, decl: str) -> None:
        self.elements.append(("declaration", decl))

    def unknown_decl(self, data: str) -> None:
        self.elements.append(("unknown",))

    def handle_pi(self, data: str) -> None:
        self.elements.append(("instruction",))


class _Filler:
    """Makes a value of any type that the views take; the same one for the same seed, but for its texts."""

    def __init__(self, seed: object, text: str) -> None:
        self._random = random.Random(repr(seed))
        self._text = text

    def fill(self, kind: Any, name: str = "") -> Any:
        origin, inner = get_origin(kind), get_args(kind)
        if origin is Annotated:
            return self.fill(inner[0], name)
        if origin is Literal:
            return self._random.choice(inner)
        if origin in (Union, types.UnionType):
            return self.fill(self._random.choice(inner), name)
        if origin in (list, collections.abc.Sequence, collections.abc.Iterable):
            return [self.fill(inner[0], name) for _ in range(self._random.randint(0, 2))]
        if origin is tuple:
            several = inner[:-1] * self._random.randint(0, 2) if inner[-1:] == (...,) else inner
            return tuple(self.fill(one, name) for one in several)
        if origin in (dict, collections.abc.Mapping):
            return {self.fill(inner[0], name): self.fill(inner[1], name) for _ in range(self._random.randint(0, 1))}
        return self._fill_plain(kind, name)

    def _fill_plain(self, kind: Any, name: str) -> Any:
        if kind is type(None):
            return None
        if kind is bool:
            return self._random.random() < 0.6
        if kind is int:
            return self._random.choice((0, 1, 2, 7))
        if kind is float:
            return self._random.choice((0.0, 0.25, 1.0))
        if kind is Path:
            return Path(self._text)
        if kind in (str, object, Any):
            return {"token": "token", "history": "<p>made</p>"}.get(name, self._text)  # the latter is HTML by a view
        hints = get_type_hints(kind, include_extras=True)
        names = kind.__struct_fields__ if issubclass(kind, msgspec.Struct) else kind._fields
        return kind(**{field: self.fill(hints[field], field) for field in names})


def _functions() -> Iterator[Any]:
    """The public functions of the views that make HTML."""
    for name in _VIEWS:
        module = importlib.import_module(f"lora_train.ui.{name}")
        for function_name, function in inspect.getmembers(module, inspect.isfunction):
            is_own = function.__module__ == module.__name__ and not function_name.startswith("_")
            if is_own and get_type_hints(function).get("return") is str:
                yield pytest.param(function, id=f"{name}.{function_name}")


class _Call(NamedTuple):
    function: Callable[..., str]
    seed: object

    def html(self, text: str) -> str:
        """Raises LookupError where the arguments don't fit each other, as a finding about a picture that is not there,
        ZeroDivisionError where they can't be, as a picture without width.
        """
        filler = _Filler(self.seed, text)
        hints = get_type_hints(self.function, include_extras=True)
        return self.function(
            **{name: filler.fill(kind, name) for name, kind in hints.items() if name not in ("return", "kind")}
        )


@pytest.mark.parametrize("function", [*_functions()])
def test_a_view_escapes_every_text(
    function: Callable[..., str], share: Callable[[int], int], count: Callable[[str, int], None]
) -> None:
    made = 0
    for number in range(share(SHAPES)):
        call = _Call(function, number)
        try:
            expected = _Skeleton(call.html(HARMLESS))
        except (LookupError, ZeroDivisionError):
            continue
        made += 1
        assert not {tag for tag, *_ in expected.elements} & _FORBIDDEN_TAGS
        assert not [name for _, *names in expected.elements for name in names if name.startswith("on")]
        for text in HOSTILE:
            found = _Skeleton(call.html(text))
            assert found.elements == expected.elements, (text, number)
            assert all(_is_own(address) for address in found.addresses), (text, found.addresses)
    assert made
    count("pieces of HTML", made * len(HOSTILE))


def test_the_report_escapes_every_text(share: Callable[[int], int], count: Callable[[str, int], None]) -> None:
    numbers = range(share(SHAPES))
    for number in numbers:
        expected = _Skeleton(report_html(_Filler(number, HARMLESS).fill(ReportFacts), []))
        for text in HOSTILE:
            found = _Skeleton(report_html(_Filler(number, text).fill(ReportFacts), []))
            assert found.elements == expected.elements, (text, number)
            assert not [address for address in found.addresses if not address.startswith(("data:image/", "#"))]
    count("reports", len(numbers) * len(HOSTILE))


def _is_own(address: str) -> bool:
    return address.startswith(("./train-tools/v1/", "#", "data:image/"))
