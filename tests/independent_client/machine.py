"""A simulated machine: its facts, its key, and the three calls it makes."""

import copy
import uuid
from dataclasses import dataclass, field
from typing import Any

from .client import Answer, Connection
from .evidence import Key, csr_digest, pem, sign_evidence

HEALTHY = {
    "os_name": "macOS",
    # Later than 15.9, which only a comparison of numbers knows.
    "os_version": "15.10",
    "os_build": "24G90",
    "sip_enabled": True,
    "filevault_enabled": True,
    "firewall_enabled": True,
    "gatekeeper_enabled": True,
    "secure_boot": "full",
    "mdm_enrolled": None,
    "agent_version": "0.1.0-independent",
}


@dataclass
class Machine:
    """One machine. `nonce` is that of the last answer it got, from whichever replica."""

    serial_number: str
    audience: str
    role: str = "desk"
    key: Key = field(default_factory=Key)
    hardware_uuid: str = field(default_factory=lambda: str(uuid.uuid4()).upper())
    posture: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(HEALTHY))
    id: str | None = None
    assurance: str | None = None
    certificate: dict[str, Any] | None = None
    nonce: str | None = None

    def enroll(self, connection: Connection, token: str | None, **evidence: Any) -> Answer:
        """Enrolls, and remembers what the server said."""
        csr = evidence.pop("csr", None) or self.key.csr()
        body = {"token": token, "csr": pem(csr), "evidence": self.evidence(connection, "enroll", **evidence)}
        answer = self._call(connection, "/v1/enroll", body)
        if answer.status in (200, 201):
            enrolled = answer.json()
            self.id, self.assurance = enrolled["machine_id"], enrolled["assurance"]
            self.certificate = enrolled["certificate"]
        return answer

    def check_in(self, connection: Connection, **evidence: Any) -> Answer:
        """Checks in with the nonce of the last answer."""
        return self._call(connection, "/v1/check-in", {"evidence": self.evidence(connection, "check-in", **evidence)})

    def renew(self, connection: Connection, **evidence: Any) -> Answer:
        """Asks for a new certificate for the same key, and remembers it."""
        csr = self.key.csr()
        signed = self.evidence(connection, "renew", **{"csr_sha256": csr_digest(csr)} | evidence)
        answer = self._call(connection, "/v1/renew", {"csr": pem(csr), "evidence": signed})
        if answer.status == 200:
            self.certificate = answer.json()["certificate"]
        return answer

    def evidence(
        self,
        connection: Connection,
        purpose: str,
        /,
        *,
        key: Key | None = None,
        header: dict[str, Any] | None = None,
        s_is: str | None = None,
        **claims: Any,
    ) -> str:
        """Evidence about this machine; `claims` replace its own. A first nonce is fetched, as there is none yet."""
        if self.nonce is None:
            self.nonce = connection.call("HEAD", "/v1/nonce").succeeded(204).nonce
        own = {
            "eat_nonce": self.nonce,
            "aud": self.audience,
            "purpose": purpose,
            "machine": self.identity(),
            "posture": self.posture,
            "key": {"store": "software", "accessibility": None},
        }
        if purpose != "enroll":
            own["sub"] = self.id
        return sign_evidence(key or self.key, own | claims, header=header, s_is=s_is)

    def identity(self) -> dict[str, str]:
        """The claim `machine`."""
        return {
            "serial_number": self.serial_number,
            "hardware_uuid": self.hardware_uuid,
            "model_identifier": "Mac16,8",
            "hostname": f"{self.serial_number.lower()}.example.com",
        }

    def _call(self, connection: Connection, path: str, body: dict[str, Any]) -> Answer:
        answer = connection.call("POST", path, body)
        self.nonce = answer.nonce
        return answer
