"""The certificate profile of the contract, and two validators of the chain: those of OpenSSL and of cryptography."""

import datetime
import hashlib
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import (
    AuthorityInformationAccessOID,
    ExtendedKeyUsageOID,
    NameOID,
)

from .evidence import Key, base64url
from .expectation import expect, expect_equal, expect_members

TIME_TO_LIVE = datetime.timedelta(days=7)
BACKDATED = datetime.timedelta(seconds=60)
CLOCK_TOLERANCE = datetime.timedelta(seconds=30)


def certificate_thumbprint(certificate: dict[str, Any]) -> str:
    """`x5t#S256` of the leaf, as grant tokens are bound to it."""
    leaf = x509.load_pem_x509_certificate(certificate["chain"].encode())
    return base64url(hashlib.sha256(leaf.public_bytes(serialization.Encoding.DER)).digest())


def verify_certificate(
    certificate: dict[str, Any], key: Key, machine_id: str, spiffe_id: str, revocation_url: str, roots: str
) -> None:
    """Verifies that a certificate that has just been issued is as the contract has it."""
    expect_members(certificate, {"serial_number", "not_before", "not_after", "chain"}, "the certificate")
    leaf, *issuing = x509.load_pem_x509_certificates(certificate["chain"].encode())
    expect(issuing, "the chain has no issuing CA")
    expect(all(ca.issuer != ca.subject for ca in issuing), "the chain has a root, which is to be left out")
    expect_leaf(leaf, key, machine_id, spiffe_id)
    expect_extensions(leaf, issuing[0], revocation_url)
    now = datetime.datetime.now(datetime.timezone.utc)
    expect(
        abs(now - BACKDATED - leaf.not_valid_before_utc) < CLOCK_TOLERANCE,
        f"not_before is {leaf.not_valid_before_utc} at {now}, not 60 s in the past",
    )
    validity = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    expect(TIME_TO_LIVE <= validity <= TIME_TO_LIVE + BACKDATED, f"the certificate is valid for {validity}")
    serial_number = format(leaf.serial_number, "x")
    serial_number = serial_number.zfill(len(serial_number) + len(serial_number) % 2)
    expect_equal(certificate["serial_number"], serial_number, "serial_number")
    for member, time in (("not_before", leaf.not_valid_before_utc), ("not_after", leaf.not_valid_after_utc)):
        expect_equal(parse_time(certificate[member]), time, member)
    validate_with_openssl(leaf, issuing, roots)
    validate_with_cryptography(leaf, issuing, roots, spiffe_id)


def expect_leaf(leaf: x509.Certificate, key: Key, machine_id: str, spiffe_id: str) -> None:
    """Whose certificate it is, and what it is signed with."""
    expect_equal(leaf.version, x509.Version.v3, "the version")
    expect_equal(leaf.public_key().public_numbers(), key.public_key().public_numbers(), "the public key")
    subject = [(attribute.oid, attribute.value) for attribute in leaf.subject]
    expect_equal(subject, [(NameOID.COMMON_NAME, machine_id)], "the subject")
    expect_equal(
        list(extension(leaf, x509.SubjectAlternativeName, False)),
        [x509.UniformResourceIdentifier(spiffe_id)],
        "the SAN",
    )
    expect(isinstance(leaf.signature_algorithm_parameters, ec.ECDSA), "the certificate is not signed with ECDSA")
    expect(isinstance(leaf.signature_hash_algorithm, hashes.SHA256), "the certificate is not signed over SHA-256")
    # Random: of 128 bits, 24 leading zeros come once in 16 million certificates.
    expect(104 < leaf.serial_number.bit_length() <= 128, f"the serial number is {leaf.serial_number:x}")


def expect_extensions(leaf: x509.Certificate, issuing: x509.Certificate, revocation_url: str) -> None:
    """Every extension that the contract names, and no other."""
    usage = extension(leaf, x509.KeyUsage, True)
    expect_equal(usage.public_bytes(), digital_signature_only().public_bytes(), "the key usage")
    expect_equal(list(extension(leaf, x509.ExtendedKeyUsage, None)), [ExtendedKeyUsageOID.CLIENT_AUTH], "the EKU")
    expect_equal(extension(leaf, x509.BasicConstraints, True).ca, False, "CA")
    expect(extension(leaf, x509.SubjectKeyIdentifier, False).digest, "the SKI is empty")
    expect_equal(
        extension(leaf, x509.AuthorityKeyIdentifier, False).key_identifier,
        extension(issuing, x509.SubjectKeyIdentifier, False).digest,
        "the AKI",
    )
    points = [name.value for point in extension(leaf, x509.CRLDistributionPoints, False) for name in point.full_name]
    authority = extension(leaf, x509.AuthorityKeyIdentifier, False).key_identifier.hex()
    expect_equal(points, [f"{revocation_url}/v1/ca/crl/{authority}"], "the CRL distribution point")
    descriptions = extension(leaf, x509.AuthorityInformationAccess, False)
    access = {(description.access_method, description.access_location.value) for description in descriptions}
    expected = {
        (AuthorityInformationAccessOID.OCSP, f"{revocation_url}/v1/ca/ocsp"),
        (AuthorityInformationAccessOID.CA_ISSUERS, f"{revocation_url}/v1/ca/issuer/{authority}"),
    }
    expect_equal(access, expected, "the AIA")
    expect_equal(len(leaf.extensions), 8, "the number of extensions")


def extension(certificate: x509.Certificate, kind: type[x509.ExtensionType], critical: bool | None) -> Any:
    """The value of an extension that must be there, and be critical or not (or either)."""
    found = certificate.extensions.get_extension_for_class(kind)
    if critical is not None:
        expect_equal(found.critical, critical, f"critical of {kind.__name__}")
    return found.value


def digital_signature_only() -> x509.KeyUsage:
    """The key usage of a machine."""
    others = (
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(digital_signature=True, **dict.fromkeys(others, False))


def validate_with_openssl(leaf: x509.Certificate, issuing: list[x509.Certificate], roots: str) -> None:
    """`openssl verify`, strict, for the purpose of a TLS client, with the roots of the server alone."""
    with tempfile.TemporaryDirectory() as directory:
        files = {"roots.pem": roots, "issuing.pem": as_pem(issuing), "leaf.pem": as_pem([leaf])}
        for name, content in files.items():
            Path(directory, name).write_text(content)
        command = [
            "openssl",
            "verify",
            "-x509_strict",
            "-purpose",
            "sslclient",
            "-no-CAstore",
            "-no-CApath",
            "-CAfile",
            "roots.pem",
            "-untrusted",
            "issuing.pem",
            "leaf.pem",
        ]
        verified = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    expect(
        verified.returncode == 0 and verified.stdout.strip() == "leaf.pem: OK",
        f"{' '.join(command)} says: {verified.stdout}{verified.stderr}",
    )


def validate_with_cryptography(
    leaf: x509.Certificate, issuing: list[x509.Certificate], roots: str, spiffe_id: str
) -> None:
    """The path validation of `cryptography`, which has the rules of the CA/Browser Forum for TLS clients."""
    store = verification.Store(x509.load_pem_x509_certificates(roots.encode()))
    verified = verification.PolicyBuilder().store(store).build_client_verifier().verify(leaf, issuing)
    expect_equal([name.value for name in verified.subjects], [spiffe_id], "the verified subject")


def as_pem(certificates: list[x509.Certificate]) -> str:
    """One after the other."""
    return "".join(certificate.public_bytes(serialization.Encoding.PEM).decode() for certificate in certificates)


def parse_time(text: str) -> datetime.datetime:
    """RFC 3339 in UTC, with a Z."""
    expect(text.endswith("Z"), f"{text} is not in UTC with a Z")
    return datetime.datetime.fromisoformat(text)
