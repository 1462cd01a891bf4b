"""The pages lead somewhere: links have their headings, and files, settings and metrics that are named are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.contract import ROOT

FOLDERS = ("docs", "deploy", "examples", "libs", "protos", "scripts", "services", "tests", "tools")
PAGES = sorted(
    page
    for folder in (".", *FOLDERS)
    for page in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")
    if not {"gen", ".pytest_cache", "node_modules"} & set(page.parts)
)
#: What is in backticks and looks like a file or folder of the repository.
PATH = re.compile(r"`((?:[\w.-]+/)+|(?:[\w.-]+/)*[\w-]+\.(?:py|md|proto|yaml|toml|svg))`")
#: Of others, and what programs make when they run.
ELSEWHERE = {".deskwire/", "buf/validate/validate.proto", "validate.proto"}
RUNTIME = (
    *("adapters/", "attachments/", "incoming/", "objects/"),
    *("databases/", "kafka/", "valkey/", "logs/", "run/"),
)
#: The tables of settings and metrics, which are made from the code (make docs).
GENERATED = ("settings.md", "watch.md")
OF_THE_COMMAND = {"DESKWIRE_HOME", "DESKWIRE_CACHE"}


def files() -> set[str]:
    found = {path.name for path in ROOT.iterdir()} | {f"{folder}/" for folder in FOLDERS}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if "__pycache__" not in path.parts:
                name = str(path.relative_to(ROOT))
                found.add(f"{name}/" if path.is_dir() else name)
    return found


FILES = files()


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub makes links of them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_are_there(page: Path) -> None:
    missing = {
        name
        for name in PATH.findall(page.read_text())
        if name not in FILES
        and not any(path.endswith(f"/{name}") for path in FILES)
        and name not in ELSEWHERE
        and not name.startswith(RUNTIME)
    }
    assert missing == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_settings_and_metrics_are_there(page: Path) -> None:
    tables = "".join((ROOT / "docs/operations" / name).read_text() for name in GENERATED)
    known = set(re.findall(r"^\| `(\w+)` \|", tables, re.MULTILINE)) | OF_THE_COMMAND
    text = page.read_text()
    settings = set(re.findall(r"DESKWIRE_[A-Z_]+[A-Z]\b", text))
    metrics = set(re.findall(r"\bdeskwire_[a-z_]+_(?:total|seconds|owned|behind|depth)\b", text))
    assert settings | metrics <= known
