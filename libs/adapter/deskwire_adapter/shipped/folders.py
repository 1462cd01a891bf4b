"""Files of tenants: in a folder of the operator's, one folder for each tenant, and nowhere else."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from deskwire_adapter.base import CredentialsRefused

ROOT: Final = "DESKWIRE_ADAPTER_ROOT"
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
NAME_PATTERN: Final = "^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$"
"""What a file name in a configuration may be: no path, and nothing hidden."""


def tenant_folder(tenant: str) -> Path:
    """The folder of a tenant, made where it is missing. Raises CredentialsRefused."""
    root = os.environ.get(ROOT, "")
    if not root:
        raise CredentialsRefused(
            "the operator allows no files here: DESKWIRE_ADAPTER_ROOT is unset"
        )
    if not _NAME.fullmatch(tenant):
        raise CredentialsRefused(f"tenant {tenant!r} can't be the name of a folder")
    folder = Path(root) / tenant
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise CredentialsRefused(f"the tenant's folder can't be made: {error.strerror}") from error
    if folder.is_symlink():
        raise CredentialsRefused("the tenant's folder is a link")
    return folder


def file_in(folder: Path, name: str) -> Path:
    """A file of this name. Raises CredentialsRefused for what is no plain name, or a link."""
    if not _NAME.fullmatch(name):
        raise CredentialsRefused(f"{name!r} is no plain file name")
    path = folder / name
    if path.is_symlink():
        raise CredentialsRefused(f"{name} is a link")
    return path
