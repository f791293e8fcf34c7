"""HTTPS with connections that are kept alive. What the contract says of every answer is checked on every answer."""

import hashlib
import http.client
import json
import socket
import ssl
import urllib.parse
from dataclasses import dataclass
from typing import Any

from .expectation import expect, expect_equal, expect_members

AGENT_ENDPOINTS = ("/v1/nonce", "/v1/enroll", "/v1/check-in", "/v1/renew")

PROBLEMS = {
    "malformed": 400,
    "bad-csr": 400,
    "bad-nonce": 400,
    "bad-evidence": 401,
    "enrollment-token-invalid": 401,
    "unauthenticated": 401,
    "forbidden": 403,
    "machine-pending": 403,
    "machine-quarantined": 403,
    "machine-revoked": 403,
    "key-superseded": 403,
    "identity-mismatch": 403,
    "enrollment-denied": 403,
    "renewal-expired": 403,
    "machine-unknown": 404,
    "not-found": 404,
    "method-not-allowed": 405,
    "machine-exists": 409,
    "attestation-refused": 409,
    "conflict": 409,
    "payload-too-large": 413,
    "unsupported-media-type": 415,
    "rate-limited": 429,
    "internal": 500,
    "unavailable": 503,
}


@dataclass(frozen=True)
class Answer:
    """An answer whose form is as promised."""

    request: str
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        """The body, which must be JSON."""
        content_type = self.headers.get_content_type()
        expect(content_type == "application/json" or content_type.endswith("+json"), f"{self} is {content_type}")
        return json.loads(self.body)

    def succeeded(self, *statuses: int) -> "Answer":
        """Itself, when it has one of these statuses."""
        expect(self.status in statuses, f"{self}, not {' or '.join(map(str, statuses))}")
        return self

    def problem(self, slug: str) -> dict[str, Any]:
        """The problem, which must be this one."""
        expect_equal(self.status, PROBLEMS[slug], f"the status of {self}")
        problem = self.json()
        expect_equal(problem["type"], f"urn:assay:problem:{slug}", f"the type of {self}")
        return problem

    @property
    def nonce(self) -> str:
        """The nonce for the next call."""
        return self.headers["Replay-Nonce"]

    @property
    def request_id(self) -> str:
        """What the audit knows the request by."""
        return self.headers["X-Request-Id"]

    def __str__(self) -> str:
        return f"the answer to {self.request} ({self.status} {self.body[:600].decode(errors='replace')})"


class Connection:
    """One connection to one replica, opened when it is first used. It belongs to one thread."""

    def __init__(self, url: str, trust: ssl.SSLContext, api_key: str | None = None) -> None:
        parts = urllib.parse.urlsplit(url)
        expect(parts.scheme == "https" and parts.hostname, f"{url} is not an https URL")
        self.url = url
        self.round_trips = 0
        self._http = http.client.HTTPSConnection(parts.hostname, parts.port or 443, timeout=30, context=trust)
        self.authorization = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Makes one round trip. `body` is sent as JSON, `content` as it is; the headers win over those for JSON."""
        if body is not None:
            content = json.dumps(body).encode()
        sent = dict(self.authorization)
        if content is not None:
            sent["Content-Type"] = "application/json"
        sent |= headers or {}
        if self._http.sock is None:
            self._http.connect()
            self._http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.round_trips += 1
        self._http.request(method, path, content, sent)
        response = self._http.getresponse()
        answer = Answer(f"{method} {path}", response.status, response.headers, response.read())
        expect_contract_form(answer, path)
        return answer

    def close(self) -> None:
        """Closes the connection. The next call opens a new one."""
        self._http.close()


def expect_contract_form(answer: Answer, path: str) -> None:
    """What the contract says of every answer, of those of the agent API, and of those that are errors."""
    expect(answer.request_id, f"{answer} has no X-Request-Id")
    if path.partition("?")[0] in AGENT_ENDPOINTS:
        expect(answer.nonce, f"{answer} has no Replay-Nonce")
        expect_equal(answer.headers["Cache-Control"], "no-store", f"Cache-Control of {answer}")
    if answer.status < 400 or not answer.body and answer.request.startswith("HEAD "):
        return
    expect_equal(answer.headers.get_content_type(), "application/problem+json", f"the content type of {answer}")
    problem = answer.json()
    expect_members(problem, {"type", "title", "status", "detail", "request_id"}, str(answer))
    slug = str(problem["type"]).removeprefix("urn:assay:problem:")
    expect(slug in PROBLEMS, f"{answer} has an unknown type")
    expect_equal(answer.status, PROBLEMS[slug], f"the status of {answer}")
    expect_equal(problem["status"], answer.status, f"the member status of {answer}")
    expect_equal(problem["request_id"], answer.request_id, f"the member request_id of {answer}")
    expect(all(isinstance(problem[member], str) for member in ("title", "detail")), f"{answer} has no texts")
    # RFC 9110 demands both of these.
    expect(answer.status != 405 or answer.headers["Allow"], f"{answer} has no Allow")
    expect(slug != "unauthenticated" or answer.headers["WWW-Authenticate"], f"{answer} has no WWW-Authenticate")
    if answer.status in (429, 503):
        expect(int(answer.headers["Retry-After"]) > 0, f"{answer} has no Retry-After")


def trust_in(roots: str) -> ssl.SSLContext:
    """Trust in these roots alone (PEM), as strict as RFC 5280, which newer clients are by default."""
    context = ssl.create_default_context(cadata=roots)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def fetch_roots(url: str, fingerprint: str) -> str:
    """The root of the server (PEM), fetched without verification, and compared with the fingerprint (in hex)."""
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    connection = Connection(url, unverified)
    roots = connection.call("GET", "/v1/ca/bundle.pem").succeeded(200).body.decode()
    connection.close()
    found = hashlib.sha256(ssl.PEM_cert_to_DER_cert(roots)).hexdigest()
    expect_equal(found, fingerprint.replace(":", "").lower(), f"the fingerprint of the root at {url}")
    return roots
