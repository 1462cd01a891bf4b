"""Events as entities of an OData v4 service, as SAP has them: CSRF tokens, ETags, OAuth 2.0."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from typing import Any, ClassVar, Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from deskwire_adapter import (
    DELIVERED,
    DUPLICATE,
    AdapterBase,
    CredentialsRefused,
    Incoming,
    Login,
    PushFailed,
    Refreshed,
    Result,
    Session,
    SessionOver,
    Token,
    conflict,
    rate_limited,
    rejected,
    retry,
    unknown,
)
from deskwire_adapter.shipped.http import Answer, Http, web_url
from deskwire_adapter.shipped.values import MAPPING_SCHEMA, Missing, mapped, value_of
from deskwire_common import exact
from deskwire_common.targets import Targets, parse_rules

_JSON: Final = {
    "Accept": "application/json",
    "Content-Type": "application/json;IEEE754Compatible=true",
    "OData-Version": "4.0",
}
_NAME: Final = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,127}$"}
_CSRF: Final = "X-CSRF-Token"
_MAX_WORDS: Final = 200


class ODataSession(Session):
    """One service with its cookies and tokens."""

    def __init__(self, login: Login, http: Http, root: URL) -> None:
        super().__init__(login)
        self.http = http
        self.root = root
        self.csrf = Refreshed(self._fetch_csrf)
        self.oauth = Refreshed(self._fetch_oauth) if "token_url" in login.config else None

    async def close(self) -> None:
        """End its connections."""
        await self.http.close()

    async def call(self, method: str, url: URL, **more: Any) -> Answer:
        """Call with the tokens that it needs; once more with fresh ones, where these were refused."""
        answer, used = await self._try(method, url, more)
        if self._renew(answer, used):
            answer, _ = await self._try(method, url, more)
        return answer

    async def _try(
        self, method: str, url: URL, more: Mapping[str, Any]
    ) -> tuple[Answer, dict[str, str]]:
        headers = {**_JSON, **more.get("headers", {})}
        used: dict[str, str] = {}
        headers.update(await self._authorization())
        if self.oauth is not None:
            used["oauth"] = headers["Authorization"].removeprefix("Bearer ")
        if method not in {"GET", "HEAD"} and self.login.config.get("csrf", True):
            used["csrf"] = headers[_CSRF] = await self.csrf.get()
        return await self.http.call(method, url, headers=headers, data=more.get("data")), used

    def _renew(self, answer: Answer, used: Mapping[str, str]) -> bool:
        """Whether a token was refused that a fresh one may do better than."""
        wants_csrf = answer.headers.get(_CSRF, "").lower() == "required"
        if answer.status == 403 and wants_csrf and "csrf" in used:
            self.csrf.refused(used["csrf"])
            return True
        if answer.status == 401 and self.oauth is not None and "oauth" in used:
            self.oauth.refused(used["oauth"])
            return True
        return False

    async def _authorization(self) -> dict[str, str]:
        """The header that signs in, for the service alone."""
        given = self.login.credentials
        if self.oauth is not None:
            return {"Authorization": f"Bearer {await self.oauth.get()}"}
        if "user" in given:
            pair = f"{given['user']}:{given.get('password', '')}".encode()
            return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
        return {}

    async def _fetch_csrf(self) -> Token:
        headers = {_CSRF: "Fetch", "Accept": "application/json"}
        headers.update(await self._authorization())
        answer = await self.http.call("GET", self.root, headers=headers)
        if answer.status in {401, 403}:
            raise SessionOver(f"the service answers {answer.status}")
        token = answer.headers.get(_CSRF, "")
        if answer.status >= 400 or not token:
            raise PushFailed(_failed(answer, "the service gives no CSRF token"))
        return Token(token)

    async def _fetch_oauth(self) -> Token:
        credentials = self.login.credentials
        answer = await self.http.call(
            "POST",
            web_url(self.login.config["token_url"], "token_url"),
            headers={"Accept": "application/json"},
            data={
                "grant_type": "client_credentials",
                "client_id": credentials.get("client_id", ""),
                "client_secret": credentials.get("client_secret", ""),
            },
        )
        if answer.status in {400, 401, 403}:
            raise SessionOver(f"the token endpoint answers {answer.status}")
        found = _object(answer)
        token, seconds = found.get("access_token"), found.get("expires_in")
        if answer.status >= 400 or not isinstance(token, str):
            raise PushFailed(_failed(answer, "the token endpoint gives no token"))
        return Token(token, float(seconds) if isinstance(seconds, int | float) else None)


class ODataAdapter(AdapterBase):
    """`python:odata`: each event creates or changes an entity, which is found by its key.

    It reads the entity first. `event_id_field` of it tells a repeated event, `sequence_field` an older one; it is
    written under the ETag that was read, and what somebody else wrote in between is a CONFLICT. Credentials: `user` and
    `password`, or `client_id` and `client_secret` with `token_url`.
    """

    program = "odata/1"
    config_schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {
            "url": {"type": "string", "minLength": 1, "maxLength": 500},
            "entity_set": _NAME,
            "key": {"type": "string", "minLength": 1, "maxLength": 200},
            "key_field": _NAME,
            "key_type": {"enum": ["string", "integer", "guid"]},
            "fields": MAPPING_SCHEMA,
            "event_id_field": _NAME,
            "sequence_field": _NAME,
            "csrf": {"type": "boolean"},
            "token_url": {"type": "string", "minLength": 1, "maxLength": 500},
        },
        "required": ["url", "entity_set", "key", "key_field", "fields"],
        "anyOf": [{"required": ["event_id_field"]}, {"required": ["sequence_field"]}],
        "additionalProperties": False,
    }

    def __init__(self, targets: Targets | None = None) -> None:
        """`targets` may be called; those of DESKWIRE_ADAPTER_TARGETS, where none are given."""
        rules = os.environ.get("DESKWIRE_ADAPTER_TARGETS", "")
        self._targets = targets or Targets(parse_rules(rules))

    async def auth(self, login: Login) -> ODataSession:
        """Fetch tokens: then the service takes the credentials."""
        root = web_url(login.config["url"], "url")
        root = root if root.path.endswith("/") else URL(f"{root}/")
        session = ODataSession(login, Http(self._targets), root)
        try:
            problem = await self.check(session)
        except SessionOver as error:
            problem = str(error)
        if problem:
            await session.close()
            raise CredentialsRefused(problem)
        return session

    async def check(self, session: ODataSession) -> str:  # type: ignore[override]
        """Whether the service answers, and gives the tokens that a write needs."""
        try:
            if session.login.config.get("csrf", True):
                await session.csrf.get()
            answer = await session.call("GET", session.root)
        except PushFailed as error:
            return error.result.detail
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            return f"no service answers there that this adapter may call ({type(error).__name__})"
        return "" if answer.status < 400 else f"the service answers {answer.status}"

    async def push_one(self, session: ODataSession, event: Incoming) -> Result:  # type: ignore[override]
        """Read, compare, write."""
        config = session.login.config
        key = value_of(event, config["key"])
        if key is Missing.MISSING or key is None:
            return rejected(f"the event has no {config['key']}")
        url = URL(f"{session.root}{config['entity_set']}({_literal(key, config)})", encoded=True)
        try:
            read = await session.call("GET", url)
            if read.status == 404:
                return await self._create(session, event, key)
            if read.status >= 400:
                return _failed(read, "the entity can't be read")
            return await self._change(session, event, url, read)
        except TimeoutError:
            return unknown("the service took too long")
        except (aiohttp.ClientError, OSError) as error:
            return unknown(f"the connection broke: {type(error).__name__}")

    async def _create(self, session: ODataSession, event: Incoming, key: Any) -> Result:
        config = session.login.config
        body = {config["key_field"]: key, **_body(event, config)}
        url = URL(f"{session.root}{config['entity_set']}", encoded=True)
        answer = await session.call("POST", url, data=exact.dumps(body).encode())
        if answer.status < 300:
            return DELIVERED
        if answer.status == 409:
            # Somebody made it since it was looked for: the next try sees it.
            return retry("the entity was made meanwhile")
        return _failed(answer, "the entity can't be made")

    async def _change(
        self, session: ODataSession, event: Incoming, url: URL, read: Answer
    ) -> Result:
        config = session.login.config
        now = _object(read)
        if now.get(config.get("event_id_field", "")) == event.event_id:
            return DUPLICATE
        known = now.get(config.get("sequence_field", ""))
        if known is not None and int(known) >= event.sequence:
            return DUPLICATE
        etag = read.headers.get("ETag") or now.get("@odata.etag")
        headers = {"If-Match": str(etag)} if etag else {}
        answer = await session.call(
            "PATCH", url, headers=headers, data=exact.dumps(_body(event, config)).encode()
        )
        if answer.status < 300:
            return DELIVERED
        if answer.status == 412:
            return conflict("somebody else changed the entity meanwhile")
        return _failed(answer, "the entity can't be changed")


def _body(event: Incoming, config: Mapping[str, Any]) -> dict[str, Any]:
    body = mapped(event, config["fields"])
    if "event_id_field" in config:
        body[config["event_id_field"]] = event.event_id
    if "sequence_field" in config:
        body[config["sequence_field"]] = event.sequence
    return body


def _literal(key: Any, config: Mapping[str, Any]) -> str:
    """A key as it stands in a URL: OData 4.01 part 2, 4.3.1."""
    kind = config.get("key_type", "string")
    if kind == "integer":
        try:
            return str(int(key))
        except (TypeError, ValueError) as error:
            raise PushFailed(rejected(f"the key {str(key)[:60]!r} is no integer")) from error
    text = str(key)
    return (
        quote(text, safe="")
        if kind == "guid"
        else quote("'" + text.replace("'", "''") + "'", safe="'")
    )


def _failed(answer: Answer, what: str) -> Result:
    """The result that an answer stands for."""
    status = answer.status
    words = f"{what}: {status}{_words(answer)}"
    if status == 401:
        raise SessionOver(words)
    if status == 429 or (status == 503 and answer.retry_after is not None):
        return rate_limited(words, answer.retry_after)
    if status in {408, 425, 502, 503, 504} or status >= 500:
        return retry(words, answer.retry_after)
    if status in {409, 412}:
        return conflict(words)
    return rejected(words)


def _words(answer: Answer) -> str:
    """What an OData error says."""
    error = _object(answer).get("error")
    message = error.get("message") if isinstance(error, dict) else None
    # Version 2 of the protocol has an object here.
    message = message.get("value") if isinstance(message, dict) else message
    return f", {' '.join(str(message).split())[:_MAX_WORDS]}" if message else ""


def _object(answer: Answer) -> dict[str, Any]:
    try:
        found = json.loads(answer.body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
