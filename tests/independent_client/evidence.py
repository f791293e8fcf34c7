"""The agent's side of the proof: a software key, its thumbprint, CSRs, and evidence as a compact JWS."""

import base64
import hashlib
import json
import time
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def base64url(octets: bytes) -> str:
    """As the contract has binary: without padding."""
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


class Key:
    """A P-256 key of a machine. It can be pickled, for the processes that check in."""

    def __init__(self, private_key: ec.EllipticCurvePrivateKey | None = None) -> None:
        self._private_key = private_key or ec.generate_private_key(ec.SECP256R1())
        point = self._private_key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        jwk = {"crv": "P-256", "kty": "EC", "x": base64url(point[1:33]), "y": base64url(point[33:])}
        # RFC 7638: the required members alone, in lexicographic order, without white space.
        canonical = json.dumps(jwk, separators=(",", ":"), sort_keys=True)
        self.thumbprint = base64url(hashlib.sha256(canonical.encode()).digest())

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        return self._private_key.public_key()

    def csr(self, common_name: str = "ignored") -> x509.CertificateSigningRequest:
        """A PKCS#10 request. The contract says that nothing but its key counts."""
        return certificate_request(self._private_key, common_name)

    def sign(self, message: bytes, s_is: str | None = None) -> bytes:
        """An ES256 signature, r and s one after the other; s as it comes, or `low` or `high`: both are valid."""
        r, s = decode_dss_signature(self._private_key.sign(message, ec.ECDSA(hashes.SHA256())))
        is_high = s > P256_ORDER // 2
        if s_is is not None and is_high != (s_is == "high"):
            s = P256_ORDER - s
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def __getstate__(self) -> bytes:
        return self._private_key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def __setstate__(self, state: bytes) -> None:
        self.__init__(serialization.load_der_private_key(state, None))


def certificate_request(private_key: ec.EllipticCurvePrivateKey, common_name: str) -> x509.CertificateSigningRequest:
    """A PKCS#10 request that asks for what must not be copied: a name, and to be a CA."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("assay.example.com")]), critical=False)
        .sign(private_key, hashes.SHA256())
    )


def pem(csr: x509.CertificateSigningRequest) -> str:
    """As request bodies have it."""
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def csr_digest(csr: x509.CertificateSigningRequest) -> str:
    """The claim `csr_sha256`."""
    return base64url(hashlib.sha256(csr.public_bytes(serialization.Encoding.DER)).digest())


def sign_evidence(
    key: Key,
    claims: dict[str, Any],
    *,
    header: dict[str, Any] | None = None,
    s_is: str | None = None,
) -> str:
    """Evidence as a compact JWS. `claims` are added to those that are always the same; `header` replaces members."""
    protected = {"alg": "ES256", "typ": "eat+jwt", "kid": key.thumbprint} | (header or {})
    payload = {"eat_profile": "urn:assay:evidence:1", "iat": int(time.time())} | claims
    signed = ".".join(base64url(json.dumps(part, separators=(",", ":")).encode()) for part in (protected, payload))
    return f"{signed}.{base64url(key.sign(signed.encode(), s_is))}"
