"""What a relying party that speaks SPIFFE makes of a server's bundle, a machine's certificate and a grant token.

Reads one JSON object from standard input: bundle (the document), trust_domain, chain and private_key (PEM), spiffe_id,
token, audience. The library has no reader for whole bundles: a bundle is taken apart by `use`, as its specification says.
"""

import base64
import json
import sys
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store
from spiffe import JwtBundle, JwtSvid, SpiffeId, TrustDomain, X509Bundle, X509Svid

from .expectation import expect, expect_equal


def main() -> None:
    """Ends with 0 if everything holds."""
    given = json.load(sys.stdin)
    document, trust_domain = given["bundle"], TrustDomain(given["trust_domain"])
    expect(type(document["spiffe_sequence"]) is int, "spiffe_sequence is a number")
    expect(type(document["spiffe_refresh_hint"]) is int and document["spiffe_refresh_hint"] > 0, "spiffe_refresh_hint")
    by_use: dict[str, list[dict[str, Any]]] = {"x509-svid": [], "jwt-svid": []}
    for key in document["keys"]:
        by_use[key["use"]].append(key)

    bundle = x509_bundle(trust_domain, by_use["x509-svid"])
    svid = X509Svid.parse(given["chain"].encode(), given["private_key"].encode())
    expect_equal(svid.spiffe_id, SpiffeId(given["spiffe_id"]), "the SPIFFE id of the certificate")
    expect_equal(svid.spiffe_id.trust_domain, bundle.trust_domain, "its trust domain")
    expect_equal(svid.private_key.public_key(), svid.leaf.public_key(), "the key of the certificate")
    verifier = PolicyBuilder().store(Store(list(bundle.x509_authorities))).build_client_verifier()
    verified = verifier.verify(svid.leaf, svid.cert_chain[1:])
    expect_equal(len(verified.chain), 3, "the path: machine, issuing CA, root")

    jwt_bundle = JwtBundle.parse(trust_domain, json.dumps({"keys": by_use["jwt-svid"]}).encode())
    token = JwtSvid.parse_and_validate(given["token"], jwt_bundle, {given["audience"]})
    expect_equal(token.spiffe_id, svid.spiffe_id, "the SPIFFE id of the grant token")
    print(len(bundle.x509_authorities), len(jwt_bundle.jwt_authorities), document["spiffe_sequence"])


def x509_bundle(trust_domain: TrustDomain, keys: list[dict[str, Any]]) -> X509Bundle:
    """The roots: one certificate a key, which is that certificate's own (SPIFFE X.509-SVID, section 6)."""
    ders = []
    for key in keys:
        expect("kid" not in key, "a root has no kid")
        expect_equal(len(key["x5c"]), 1, "one certificate a key")
        der = base64.b64decode(key["x5c"][0], validate=True)
        numbers = x509.load_der_x509_certificate(der).public_key().public_numbers()
        expect(isinstance(numbers, ec.EllipticCurvePublicNumbers), "the key is on a curve")
        expect_equal((key["kty"], coordinate(key, "x"), coordinate(key, "y")), ("EC", numbers.x, numbers.y), "the JWK")
        ders.append(der)
    return X509Bundle.parse_raw(trust_domain, b"".join(ders))


def coordinate(key: dict[str, Any], name: str) -> int:
    """A member of a JWK that is a number."""
    return int.from_bytes(base64.urlsafe_b64decode(key[name] + "=="))


if __name__ == "__main__":
    main()
