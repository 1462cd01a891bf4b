"""A small OData v4 service as SAP has them: CSRF tokens that end, cookies they belong to, ETags, OAuth 2.0."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

from aiohttp import web

ROOT = "/sap/opu/odata4/crm/"


class Service:
    """Customers by Number. `entities` are they; `trouble` may answer a request in its place."""

    def __init__(self) -> None:
        self.entities: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, int] = {}
        self.calls: list[str] = []
        self.trouble: Callable[[web.Request], web.Response | None] = lambda _request: None
        self.after_read: Callable[[str], None] = lambda _key: None
        self.csrf: dict[str, str] = {}
        self.csrf_given = 0
        self.tokens: set[str] = set()
        self.bearer = False
        self.url = ""
        self.port = 0

    async def answer(self, request: web.Request) -> web.Response:
        """Any request."""
        path = unquote(request.rel_url.raw_path)
        self.calls.append(f"{request.method} {path.removeprefix(ROOT)}".strip())
        if path == "/token":
            return await self._token(request)
        found = self.trouble(request) or self._refusal(request)
        if found is not None:
            return found
        if path == ROOT:
            return self._root(request)
        if request.method != "GET":
            cookie = request.cookies.get("SAP_SESSION", "")
            if not cookie or self.csrf.get(cookie) != request.headers.get("X-CSRF-Token"):
                headers = {"X-CSRF-Token": "Required"}
                return _error(403, "CSRF token validation failed", headers)
        if request.method == "POST":
            return self._create(json.loads(await request.read()))
        match = re.fullmatch(rf"{ROOT}Customers\('(.*)'\)", path)
        key = match[1].replace("''", "'") if match else ""
        if key not in self.entities:
            return _error(404, f"no customer {key}")
        if request.method == "GET":
            response = web.json_response(self.entities[key], headers={"ETag": self._etag(key)})
            self.after_read(key)
            return response
        if request.headers.get("If-Match") != self._etag(key):
            return _error(412, "precondition failed")
        self.write(key, json.loads(await request.read()))
        return web.Response(status=204)

    def write(self, key: str, fields: dict[str, Any]) -> None:
        """As somebody else would."""
        self.entities.setdefault(key, {"Number": key}).update(fields)
        self.versions[key] = self.versions.get(key, 0) + 1

    def _create(self, fields: dict[str, Any]) -> web.Response:
        if fields["Number"] in self.entities:
            return _error(409, "it exists")
        self.write(fields["Number"], fields)
        return web.json_response(fields, status=201)

    def _root(self, request: web.Request) -> web.Response:
        response = web.json_response({"value": [{"name": "Customers"}]})
        if request.headers.get("X-CSRF-Token") == "Fetch":
            cookie, token = secrets.token_hex(8), secrets.token_hex(8)
            self.csrf[cookie] = token
            self.csrf_given += 1
            response.set_cookie("SAP_SESSION", cookie)
            response.headers["X-CSRF-Token"] = token
        return response

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        if form["client_secret"] != "open sesame":
            return web.json_response({"error": "invalid_client"}, status=401)
        token = secrets.token_hex(8)
        self.tokens.add(token)
        return web.json_response({"access_token": token, "expires_in": 3600})

    def _refusal(self, request: web.Request) -> web.Response | None:
        given = request.headers.get("Authorization", "")
        if self.bearer:
            good = given.removeprefix("Bearer ") in self.tokens
        else:
            good = given == "Basic ZGVzazpvcGVuIHNlc2FtZQ=="
        return None if good else _error(401, "sign in")

    def _etag(self, key: str) -> str:
        return f'W/"{self.versions[key]}"'


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    body = {"error": {"code": str(status), "message": message}}
    return web.json_response(body, status=status, headers=headers)


@asynccontextmanager
async def odata_service() -> AsyncIterator[Service]:
    """The service on loopback."""
    service = Service()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", service.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    service.port = runner.addresses[0][1]
    service.url = f"http://127.0.0.1:{service.port}{ROOT}"
    yield service
    await runner.cleanup()
