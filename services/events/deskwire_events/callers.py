"""Who calls: the hub serves callers of one tenant."""

from __future__ import annotations

from deskwire_common.auth import ANY_TENANT, Principal, current_principal
from deskwire_common.errors import PermissionDenied


def tenant_caller() -> Principal:
    """The caller, who must speak for one tenant. Raises PermissionDenied."""
    principal = current_principal()
    if principal.tenant == ANY_TENANT:
        raise PermissionDenied("this needs a token of one tenant")
    return principal
