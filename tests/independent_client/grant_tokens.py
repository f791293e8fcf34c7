"""A relying party: it knows the issuer's discovery document, and a stock JWT library."""

import datetime
import json
import ssl
import urllib.request
from typing import Any

import jwt

from .certificates import certificate_thumbprint, parse_time
from .expectation import expect, expect_equal
from .machine import Machine

TIME_TO_LIVE = 600
# Tokens are valid from so many seconds ago, for verifiers whose clocks are behind.
BACKDATED = 30
CLAIMS = ["iss", "sub", "aud", "iat", "nbf", "exp", "jti", "cnf", "scope", "permissions", "machine_id", "assurance"]


class RelyingParty:
    """Verifies grant tokens with the keys that the discovery document leads to."""

    def __init__(self, url: str, trust: ssl.SSLContext) -> None:
        with urllib.request.urlopen(f"{url}/.well-known/openid-configuration", context=trust, timeout=30) as answer:
            discovery = json.load(answer)
        self.issuer = discovery["issuer"]
        self._algorithms = discovery["id_token_signing_alg_values_supported"]
        expect_equal(self._algorithms, ["ES256"], "id_token_signing_alg_values_supported")
        self._keys = jwt.PyJWKClient(discovery["jwks_uri"], ssl_context=trust, lifespan=3600, timeout=30)

    def verify(self, grant: dict[str, Any], machine: Machine, certificate_digest: str | None = None) -> dict[str, Any]:
        """The claims of a token that is for this audience, of this issuer, and bound to this machine."""
        claims = self.claims(grant)
        expect_equal(claims["aud"], [grant["audience"]], "aud")
        expect(claims["sub"].endswith(f"/machine/{machine.id}"), f"sub is {claims['sub']}")
        bound_to = {
            "jkt": machine.key.thumbprint,
            "x5t#S256": certificate_digest or certificate_thumbprint(machine.certificate),
        }
        expect_equal(claims["cnf"], bound_to, "cnf")
        expect_equal(claims["permissions"], grant["permissions"], "permissions")
        expect_equal(claims["scope"].split(" "), grant["permissions"], "scope")
        expect_equal(claims["machine_id"], machine.id, "machine_id")
        expect_equal(claims["assurance"], machine.assurance, "assurance")
        expect_equal(claims["exp"] - claims["iat"], TIME_TO_LIVE + BACKDATED, "the life of the token")
        expires_at = datetime.datetime.fromtimestamp(claims["exp"], datetime.timezone.utc)
        expect_equal(parse_time(grant["expires_at"]), expires_at, "expires_at")
        return claims

    def claims(self, grant: dict[str, Any]) -> dict[str, Any]:
        """The claims that the library accepts, for whichever machine they are."""
        token = grant["token"]
        return jwt.decode(
            token,
            self._keys.get_signing_key_from_jwt(token),
            algorithms=self._algorithms,
            audience=grant["audience"],
            issuer=self.issuer,
            options={"require": CLAIMS},
        )

    def expect_refused(self, token: str, audience: str, reason: type[jwt.PyJWTError]) -> None:
        """Ends the scenario, unless the library refuses the token for this reason."""
        try:
            key = self._keys.get_signing_key_from_jwt(token)
            jwt.decode(token, key, algorithms=self._algorithms, audience=audience, issuer=self.issuer)
        except reason:
            return
        expect(False, f"a token was accepted for {audience} that should not be")
