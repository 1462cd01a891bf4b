"""The directory store over real HTTP: what a signed URL lets in and out, and what it doesn't."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from deskwire_chat import domain
from deskwire_chat.attachments.base import Signed
from deskwire_chat.attachments.directory import DirectoryStore, Folder
from deskwire_chat.attachments.http import FilesSide
from deskwire_chat.attachments.signing import Signatures, UrlSigner
from deskwire_chat.domain.attachments import Attachment, AttachmentState
from deskwire_common.auth import KeySet
from deskwire_common.clock import ManualClock
from deskwire_common.errors import FailedPrecondition
from support import eventually
from support.files import PICTURE, Answer, http
from support.suite import new_id


@dataclass
class Place:
    """A running store, and requests to it."""

    folder: Path
    clock: ManualClock
    disk: Folder
    store: DirectoryStore
    side: FilesSide
    port: int = 0
    made: list[str] = field(default_factory=list)

    async def upload(self, data: bytes = PICTURE, *, sha256: str | None = None) -> Signed:
        """A URL for so many bytes of this digest."""
        self.made.append(new_id())
        digest = hashlib.sha256(data).hexdigest() if sha256 is None else sha256
        return await self.store.upload(
            self.made[-1], content_type="image/png", size=len(data), sha256=digest, seconds=60
        )

    def item(self, size: int = len(PICTURE), name: str = "cat.png") -> Attachment:
        """The record of the one that was made last."""
        return Attachment(
            attachment_id=self.made[-1],
            tenant="t",
            conversation_id=new_id(),
            uploader_role=1,
            uploader_id="1",
            uploader_name="",
            file_name=name,
            content_type="image/png",
            size_bytes=size,
            sha256="",
            state=AttachmentState.PENDING,
            seq=0,
            created_at=0,
            remove_at=0,
        )

    async def begin(self, to: Signed, **headers: str) -> asyncio.StreamWriter:
        """An upload of which only the head is sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        parts = urlsplit(to.url)
        lines = [f"PUT {parts.path}?{parts.query} HTTP/1.1", "Host: x"]
        lines += [f"{name}: {value}" for name, value in {**to.headers, **headers}.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        await writer.drain()
        self.reader = reader
        return writer

    def files(self) -> list[str]:
        return sorted(each.name for each in self.folder.rglob("*") if each.is_file())


@asynccontextmanager
async def place(folder: Path, keys_file: Path, **more: Any) -> AsyncIterator[Place]:
    clock = ManualClock(datetime.now(UTC))
    signatures = Signatures(KeySet.load(keys_file), clock)
    files = Folder(folder)
    await files.open()
    options = {"max_transfers": 2, "transfer_seconds": 30.0, **more}
    side = FilesSide(files, signatures, **options)
    port = await side.listen("127.0.0.1", 0)
    store = DirectoryStore(files, UrlSigner(f"http://127.0.0.1:{port}", signatures))
    try:
        yield Place(folder, clock, files, store, side, port)
    finally:
        await side.close()
        files.close()


@pytest.fixture
async def p(tmp_path: Path, keys_file: Path) -> AsyncIterator[Place]:
    async with place(tmp_path / "files", keys_file) as found:
        yield found


async def put(to: Signed, data: Any = PICTURE, **headers: str) -> Answer:
    return await http("PUT", to.url, data, {**to.headers, **headers})


def changed(url: str, name: str, value: str) -> str:
    """The URL with another value of a parameter."""
    head, _, query = url.partition("?")
    pairs = dict(each.split("=", 1) for each in query.split("&"))
    assert name in pairs
    return f"{head}?" + "&".join(f"{n}={v}" for n, v in {**pairs, name: value}.items())


async def test_there_and_back(p: Place) -> None:
    to = await p.upload()
    assert (await put(to)).status == 200
    assert (await put(to)).status == 200  # an answer that was lost
    item = p.item()
    await p.store.promote(item)
    await p.store.promote(item)
    assert p.files() == [item.attachment_id]
    assert oct(p.disk.object_path(item.attachment_id).stat().st_mode)[-3:] == "600"
    back = await p.store.download(item, seconds=60)
    got = await http("GET", back.url)
    assert (got.status, got.body) == (200, PICTURE)
    part = await http("GET", back.url, headers={"Range": "bytes=1-3"})
    assert (part.status, part.body) == (206, PICTURE[1:4])
    assert (await http("HEAD", back.url)).headers["Content-Length"] == str(len(PICTURE))
    # Complete: the bytes stay as they are.
    assert (await put(to)).status == 409
    await p.store.remove(item)
    await p.store.remove(item)
    assert p.files() == []
    assert (await http("GET", back.url)).status == 404
    with pytest.raises(FailedPrecondition):
        await p.store.promote(item)


async def test_a_url_that_was_touched_is_refused(p: Place) -> None:
    to = await p.upload()
    touched = [
        to.url.replace(p.made[-1], new_id()),
        changed(to.url, "size", "9"),
        changed(to.url, "type", "text%2Fhtml"),
        changed(to.url, "sha256", ""),
        changed(to.url, "expires", "9999999999"),
        changed(to.url, "signature", "0" * 64),
        changed(to.url, "signature", "%FF"),
        to.url + "&size=9",
        to.url + "&more=1",
        to.url.partition("&signature")[0],
        to.url.partition("?")[0],
    ]
    for url in touched:
        answer = await http("PUT", url, PICTURE, to.headers)
        assert (answer.status, b"signed here" in answer.body) == (403, True), url
    # A URL is for one method.
    assert (await http("GET", to.url)).status == 403
    assert (await http("DELETE", to.url)).status == 405
    back = await p.store.download(p.item(), seconds=60)
    assert (await http("PUT", back.url, PICTURE, to.headers)).status == 403
    # And for a time.
    p.clock.advance(61)
    assert b"expired" in (await put(to)).body
    assert (await http("GET", back.url)).status == 403
    assert p.files() == []


async def test_keys_rotate(p: Place, tmp_path: Path) -> None:
    file = tmp_path / "rotating.json"
    keys = KeySet.generate()
    keys.save(file)
    signatures = Signatures(KeySet.load(file), p.clock)
    signer = UrlSigner("http://x", signatures)
    url = signer.sign("GET", "a", {"name": "n"}, seconds=60)
    query = dict(each.split("=") for each in urlsplit(url).query.split("&"))
    assert signatures.refusal("GET", "a", query) == ""
    fresh = keys.rotated()
    fresh.save(file)
    assert signatures.refusal("GET", "a", query) == ""
    newer = signer.sign("GET", "a", {"name": "n"}, seconds=60)
    assert newer != url
    KeySet.generate().save(file)
    assert "signed here" in signatures.refusal("GET", "a", query)


async def test_only_what_was_declared_comes_in(p: Place) -> None:
    to = await p.upload()
    length = {"Content-Length": str(len(PICTURE) + 1)}
    assert (await put(to, PICTURE + b"1", **length)).status == 413
    assert (await put(to, PICTURE[1:], **{"Content-Length": str(len(PICTURE) - 1)})).status == 400
    assert (await put(to, PICTURE, **{"Content-Type": "text/html"})).status == 400

    # Without a length it is counted.
    async def chunks(data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), 65_536):
            yield data[start : start + 65_536]

    headers = {"Content-Type": "image/png"}
    for data in (PICTURE + b"1", PICTURE[1:], b""):
        answer = await http("PUT", to.url, chunks(data), headers)
        assert (answer.status, answer.body[:7]) == (400, b"refused")
    # Other bytes of the same length.
    assert b"SHA-256" in (await put(to, bytes(len(PICTURE)))).body
    await eventually(lambda: p.files() == [])
    assert (await http("PUT", to.url, chunks(PICTURE), headers)).status == 200
    assert (
        await http("PUT", (await p.upload(sha256="")).url, bytes(len(PICTURE)), headers)
    ).status == 200
    with pytest.raises(FailedPrecondition, match="bytes were uploaded"):
        await p.store.promote(p.item(size=7))


async def test_paths_lead_nowhere(p: Place) -> None:
    secret = p.folder.parent / "secret"
    secret.write_text("secret")
    names = ["..%2F..%2Fsecret", "%2e%2e/secret", "..", ".part", "%00", f"{new_id()}/../../secret"]
    for name in names:
        for method in ("GET", "PUT"):
            answer = await http(method, f"http://127.0.0.1:{p.port}/attachments/{name}?expires=1")
            assert answer.status in {403, 404, 405}, name
            assert b"secret" not in answer.body
    # Even with a good signature only ids are served.
    signer = p.store._signer
    for name in ("..%2F..%2Fsecret", "%2e%2e%2Fsecret"):
        url = signer.sign("GET", "../../secret", {"name": "a", "type": "b"}, seconds=60)
        assert (await http("GET", url.replace("../../secret", name))).status in {403, 404}
    # A link in the place of a part file isn't followed.
    to = await p.upload(b"abc")
    upload = p.disk.receive(p.made[-1], size=3, sha256="")
    upload._part.symlink_to(secret)
    with pytest.raises(FileExistsError):
        await upload.write(b"abc")
    assert secret.read_text() == "secret"
    upload._part.unlink()
    assert (await put(to, b"abc")).status == 200


async def test_a_name_is_only_a_name(p: Place) -> None:
    names = {
        'a".html\r\nX: y': 'filename="a_.html__X_ y"',
        "..\\..\\evil.exe": 'filename=".._.._evil.exe"',
        "猫.png": "filename=\".png\"; filename*=UTF-8''%E7%8C%AB.png",
        "猫": 'filename="file"',
    }
    for name, shown in names.items():
        assert shown in domain.attachments.disposition(name), name
        assert domain.attachments.disposition(name).isascii()
        assert domain.attachments.disposition(name).isprintable()
    to = await p.upload()
    await put(to)
    await p.store.promote(p.item())
    back = await p.store.download(p.item(name="<script>.html"), seconds=60)
    got = await http("GET", back.url)
    assert got.headers["Content-Disposition"].startswith('attachment; filename="_script_.html"')
    assert got.headers["Content-Type"] == "image/png"
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert got.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert got.headers["Cache-Control"] == "private, no-store"
    assert "Access-Control-Allow-Origin" not in got.headers


async def test_an_upload_that_breaks_off_leaves_nothing(p: Place) -> None:
    to = await p.upload()
    writer = await p.begin(to)
    writer.write(PICTURE[:700_000])
    await writer.drain()
    await eventually(lambda: len(p.files()) == 1)
    assert p.files()[0].endswith(".part")
    writer.close()
    await writer.wait_closed()
    await eventually(lambda: p.files() == [])
    assert (await put(to)).status == 200
    # What a crash left behind, and what was never completed, goes a day later.
    left = p.folder / "incoming" / f".{new_id()}.0.part"
    left.write_bytes(b"x")
    before = p.clock.now().timestamp() - domain.attachments.UNSENT_SECONDS
    assert await p.store.sweep(before=before) == 0
    os.utime(left, (before - 1, before - 1))
    assert await p.store.sweep(before=before) == 1
    assert p.files() == [p.made[-1]]


async def test_slow_uploads_end_and_only_so_many_go_on(tmp_path: Path, keys_file: Path) -> None:
    async with place(tmp_path / "f", keys_file, idle_seconds=0.5, max_transfers=1) as p:
        to = await p.upload()
        writer = await p.begin(to)
        writer.write(PICTURE[:700_000])
        await eventually(lambda: len(p.files()) == 1)
        refused = await put(to)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        answer = await asyncio.wait_for(p.reader.readline(), 10)
        assert b"408" in answer
        writer.close()
        await eventually(lambda: p.files() == [])
        assert (await put(to)).status == 200
    # A trickle isn't idle, but it isn't done in time either.
    async with place(tmp_path / "g", keys_file, transfer_seconds=1.0) as p:
        writer = await p.begin(await p.upload())
        reading = asyncio.create_task(p.reader.readline())
        while not reading.done():
            writer.write(b"1")
            await asyncio.sleep(0.05)
        assert b"408" in await reading
        writer.close()
        await eventually(lambda: p.files() == [])
    # Who reads nothing is let go.
    async with place(tmp_path / "h", keys_file, transfer_seconds=0.5) as p:
        big = bytes(30_000_000)
        await put(await p.upload(big, sha256=""), io.BytesIO(big))
        await p.store.promote(p.item(size=len(big)))
        url = urlsplit((await p.store.download(p.item(size=len(big)), seconds=60)).url)
        reader, writer = await asyncio.open_connection("127.0.0.1", p.port, limit=1024)
        writer.write(f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await eventually(lambda: p.side._open["GET"] == 1)
        await eventually(lambda: p.side._open["GET"] == 0)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(len(big))
        writer.close()


async def test_pages_of_other_origins(tmp_path: Path, keys_file: Path) -> None:
    async with place(tmp_path / "f", keys_file, cors_origins=["https://a.example"]) as p:
        to = await p.upload()
        asked = {
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "content-type",
        }
        good = await http("OPTIONS", to.url, headers={**asked, "Origin": "https://a.example"})
        assert good.status == 204
        assert good.headers["Access-Control-Allow-Origin"] == "https://a.example"
        assert "PUT" in good.headers["Access-Control-Allow-Methods"]
        assert good.headers["Vary"] == "Origin"
        bad = await http("OPTIONS", to.url, headers={**asked, "Origin": "https://b.example"})
        assert bad.status == 403
        assert "Access-Control-Allow-Origin" not in bad.headers
        answer = await put(to, Origin="https://a.example")
        assert answer.headers["Access-Control-Allow-Origin"] == "https://a.example"
        # Refusals too, or a page couldn't read why.
        refused = await put(to, b"1", Origin="https://a.example", **{"Content-Length": "1"})
        assert refused.status == 400
        assert refused.headers["Access-Control-Allow-Origin"] == "https://a.example"
    async with place(tmp_path / "g", keys_file, cors_origins=["*"]) as p:
        answer = await put(await p.upload(), Origin="https://b.example")
        assert answer.headers["Access-Control-Allow-Origin"] == "https://b.example"


async def test_memory_stays_small(p: Place) -> None:
    """A file is never in memory as a whole, on neither way."""
    import tracemalloc

    size = 24 * 2**20

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(size // 65_536):
            yield bytes(65_536)

    to = await p.upload(bytes(size), sha256="")
    tracemalloc.start()
    try:
        answer = await http("PUT", to.url, chunks(), {"Content-Type": "image/png"})
        assert answer.status == 200
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 4
