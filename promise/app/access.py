"""Access to the page: the token of a public server, one name per browser, and headers for the browser's own checks."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    # The page loads nothing from other sites, and the browser enforces this.
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
VISITOR = "promise-visitor"  # cookie
# Not Strict: a browser that follows a link to the page from a message would not send it after the redirect.
ATTRIBUTES = "Path=/; HttpOnly; SameSite=Lax"
REFUSAL = "This address needs its token: open the whole address that promise-app printed, with ?token=…"


def new_token() -> str:
    """A random token of 256 bits."""
    return secrets.token_urlsafe(32)


def visitor_of(request: Request) -> str:
    """The visitor who sent a request: the browser, by its cookie, else the address. It grants no access."""
    address = "unknown" if request.client is None else request.client.host
    return request.cookies.get(VISITOR, address)[:64]


class Access:
    """Middleware: refuse requests without the token, name the browser, and add HEADERS to every response.

    The page is opened with the token in its address. The browser then keeps it in a cookie, and the address is replaced
    by one without the token.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        """Wrap an application; without a token, all requests are accepted."""
        self._app = app
        self._token = token
        # Cookies do not distinguish ports: each server of a machine has a name of its own.
        self._cookie = f"promise-token-{hashlib.sha256((token or '').encode()).hexdigest()[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        at_start = request.url.path == "/"
        in_address = request.query_params.get("token")
        cookies = []
        app = self._app
        if self._token is not None:
            if not self._is_token(in_address) and not self._is_token(request.cookies.get(self._cookie)):
                app = JSONResponse({"error": REFUSAL, "codes": ["missing-token"]}, 401)
            elif in_address is not None and at_start:
                app = RedirectResponse("/", 303)
                cookies.append(f"{self._cookie}={self._token}; {ATTRIBUTES}")
        if at_start and app is self._app and VISITOR not in request.cookies:
            cookies.append(f"{VISITOR}={secrets.token_urlsafe(16)}; {ATTRIBUTES}")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                for cookie in cookies:
                    headers.append("set-cookie", cookie)
            await send(message)

        await app(scope, receive, send_with_headers)

    def _is_token(self, text: str | None) -> bool:
        """Whether a text is the token; the time of the comparison does not tell which part is right."""
        return hmac.compare_digest((text or "").encode(), (self._token or "").encode()) and bool(text)
