"""Authentication of callers: JWTs signed with Ed25519 by a key of the keys file (a JWK set, RFC 7517/8037).

The tenant always comes from the token. The algorithm comes from the key, never from the token's header. A key signs
only what its grant allows: which roles, for which tenants, for how long.
"""

from deskwire_common.auth.admission import (
    Admission,
    AgentKey,
    agent_disabled,
    tenant_disabled,
)
from deskwire_common.auth.grants import (
    LIFETIME_MEMBER,
    MAX_LIFETIME,
    PUBLIC_KEY_LIFETIME,
    ROLES_MEMBER,
    TENANTS_MEMBER,
    Grant,
)
from deskwire_common.auth.guesses import Guesses
from deskwire_common.auth.keys import ALGORITHM, KeysError, KeySet, VerifyingKey
from deskwire_common.auth.principals import (
    ANY_TENANT,
    Principal,
    Profile,
    Role,
    acting_as,
    checked_principal,
    current_peer,
    current_principal,
    email_fault,
    id_fault,
    is_subject,
    mobile_fault,
    name_fault,
    set_current_peer,
    set_current_principal,
)
from deskwire_common.auth.signer import TokenSigner
from deskwire_common.auth.verifier import (
    AUDIENCE,
    EXPIRY_GRACE,
    ISSUER,
    TokenVerifier,
    token_expired,
)

__all__ = [
    "ALGORITHM",
    "ANY_TENANT",
    "AUDIENCE",
    "EXPIRY_GRACE",
    "ISSUER",
    "LIFETIME_MEMBER",
    "MAX_LIFETIME",
    "PUBLIC_KEY_LIFETIME",
    "ROLES_MEMBER",
    "TENANTS_MEMBER",
    "Admission",
    "AgentKey",
    "Grant",
    "Guesses",
    "KeySet",
    "KeysError",
    "Principal",
    "Profile",
    "Role",
    "TokenSigner",
    "TokenVerifier",
    "VerifyingKey",
    "acting_as",
    "agent_disabled",
    "checked_principal",
    "current_peer",
    "current_principal",
    "email_fault",
    "id_fault",
    "is_subject",
    "mobile_fault",
    "name_fault",
    "set_current_peer",
    "set_current_principal",
    "tenant_disabled",
    "token_expired",
]
