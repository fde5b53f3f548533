"""Who may call: the page itself, or a program with the API's user and password.

Neither of a host's login options covers routes that are added to its server, so every call is looked at here. Nothing
ever answers with `WWW-Authenticate`: a browser would open its own login box, or hang.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from fastapi import Request

from lora_train.api.pace import WrongPasswords

TOKEN = secrets.token_urlsafe(32)
"""Carried by the page's HTML and sent along by its script. One for the process, so that it outlives a Reload UI."""

_LOG_IN = "You are not logged in any more. Log in again and reload the page."
_RELOAD = "The program was started anew since this page was opened, or the call is not the page's. Reload the page."
_CREDENTIALS = "User or password are missing or wrong. Send those of --api-auth as HTTP Basic credentials."
TOO_MANY_TRIES = "Too many wrong passwords came from this address. Wait a minute, then send the right one."
_CLOSED = "The program runs without a page, and nobody may use its API. Start it with --api-auth user:password."


class Gate(Protocol):
    def check(self, request: Request) -> str | None:
        """None when the caller may; else why not."""
        ...


class PageGate:
    """As strict as the page: its login where it has one, else a token that only the page knows.

    `api_auth_pairs` gives the users and passwords of the host's API, which may always call. `page_exists` tells whether
    there is a page at all.
    """

    def __init__(
        self, api_auth_pairs: Callable[[], Sequence[tuple[str, str]]], page_exists: Callable[[], bool]
    ) -> None:
        self._api_auth_pairs = api_auth_pairs
        self._page_exists = page_exists
        self._wrong_passwords = WrongPasswords()

    def check(self, request: Request) -> str | None:
        pairs = self._api_auth_pairs()
        if pairs and _scheme(request) == "basic":
            address = request.client.host if request.client else ""
            if self._wrong_passwords.are_too_many(address):
                return self._check_page(request, pairs) and TOO_MANY_TRIES
            if _has_credentials(request, pairs):
                return None
            self._wrong_passwords.note(address)
        return self._check_page(request, pairs)

    def _check_page(self, request: Request, pairs: Sequence[tuple[str, str]]) -> str | None:
        """Without a look at passwords."""
        if not self._page_exists():
            return _CREDENTIALS if pairs else _CLOSED
        page = _page_app(request)
        if _has_login(page):
            return None if _is_logged_in(request, page) else _LOG_IN
        return None if _has_token(request) else _RELOAD


def _page_app(request: Request) -> Any:
    """The gradio app: the server itself, or mounted in it. A host's Reload UI makes a new one, so it is never kept."""
    server: Any = request.app
    mounted = (getattr(route, "app", None) for route in server.routes)
    return next((app for app in (server, *mounted) if hasattr(app, "tokens")), None)


def _has_login(page: Any) -> bool:
    """A page that is not found may have one: then nobody is let in by the token alone."""
    if page is None:
        return True
    return getattr(page, "auth", None) is not None or getattr(page, "auth_dependency", None) is not None


def _is_logged_in(request: Request, page: Any) -> bool:
    """gradio 3 has fixed cookie names, later ones end in the app's id. A stale one must not hide a good one."""
    cookie_id = getattr(page, "cookie_id", None)
    suffix = f"-{cookie_id}" if cookie_id else ""
    cookies = (request.cookies.get(f"{name}{suffix}") for name in ("access-token", "access-token-unsecure"))
    tokens = getattr(page, "tokens", {})
    return any(cookie is not None and tokens.get(cookie) is not None for cookie in cookies)


def _has_token(request: Request) -> bool:
    """In the header; or in the address, for pictures and downloads, which can't send one."""
    token = request.headers.get("x-train-tools", "")
    if not token and request.method == "GET":
        token = request.query_params.get("token", "")
    return _is_same(token, TOKEN)


def _scheme(request: Request) -> str:
    return request.headers.get("authorization", "").partition(" ")[0].lower()


def _has_credentials(request: Request, pairs: Sequence[tuple[str, str]]) -> bool:
    encoded = request.headers.get("authorization", "").partition(" ")[2]
    try:
        user, _, password = base64.b64decode(encoded.strip(), validate=True).decode("utf-8").partition(":")
    except ValueError:  # not base64, or not text
        return False
    return any(_is_same(user, one) & _is_same(password, other) for one, other in pairs if one)


def _is_same(given: str, secret: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8"), secret.encode("utf-8"))
