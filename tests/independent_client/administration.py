"""The admin API, with a key of one role."""

from collections.abc import Iterator
from typing import Any

from .client import Answer, Connection
from .expectation import expect, expect_equal, expect_members

MACHINE = {
    "id", "status", "status_reason", "assurance", "liveness", "serial_number", "hardware_uuid", "model_identifier",
    "hostname", "labels", "note", "key", "certificate", "posture", "attested_at", "enrolled_at", "last_check_in_at",
    "last_verdict", "clock_skew_seconds", "agent_version",
}  # fmt: skip
AUDIT_ENTRY = {
    "id", "at", "actor", "action", "resource", "request_id", "reason", "before", "after", "hash",
}  # fmt: skip


class Administration:
    """An administrator. Calls go to the replica of its connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def call(self, method: str, path: str, body: Any = None) -> Answer:
        """One call below /v1/admin, whatever comes of it."""
        return self.connection.call(method, f"/v1/admin/{path}", body)

    def create(self, collection: str, body: dict[str, Any]) -> dict[str, Any]:
        """Creates something, and reads it back."""
        created = self.call("POST", collection, body).succeeded(201).json()
        expect_members(created, {"id"}, f"what POST {collection} answers")
        if collection != "api-keys":
            read = self.read(f"{collection}/{created['id']}")
            shown = {name: value for name, value in created.items() if name not in ("token", "secret")}
            expect_equal(read, shown, "what is read back")
        return created

    def read(self, path: str) -> Any:
        """Reads one thing."""
        return self.call("GET", path).succeeded(200).json()

    def delete(self, path: str) -> None:
        """Deletes something, which is gone then."""
        self.call("DELETE", path).succeeded(200, 204)
        if not path.startswith("api-keys/"):
            self.call("GET", path).problem("not-found")

    def list(self, path: str, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Every item of a list, page after page."""
        cursor = None
        while True:
            parameters = [f"limit={limit}"] * (limit is not None) + [f"cursor={cursor}"] * (cursor is not None)
            query = "&".join(parameters)
            page = self.read(f"{path}{'&' if '?' in path else '?'}{query}" if query else path)
            expect_equal(set(page), {"items", "next_cursor"}, "the members of a page")
            expect(len(page["items"]) <= (limit or 50), f"a page of {path} has {len(page['items'])} items")
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return
            expect(page["items"], f"an empty page of {path} has a next one")

    def machine(self, machine_id: str) -> dict[str, Any]:
        """A machine's record, with every member that the contract names."""
        record = self.read(f"machines/{machine_id}")
        expect_members(record, MACHINE, "the machine")
        return record

    def act(self, machine_id: str, action: str, reason: str) -> Answer:
        """Quarantines, releases, revokes a machine; the audit knows who it was, why, and which request."""
        answer = self.call("POST", f"machines/{machine_id}/{action}", {"reason": reason}).succeeded(200, 204)
        entries = [
            entry
            for entry in self.list(f"audit?resource=machine:{machine_id}", 500)
            if entry["request_id"] == answer.request_id
        ]
        expect_equal(len(entries), 1, f"the number of audit entries of {answer}")
        expect_members(entries[0], AUDIT_ENTRY, "the audit entry")
        expect_equal(entries[0]["reason"], reason, "the reason in the audit")
        expect_equal(entries[0]["resource"], {"kind": "machine", "id": machine_id}, "the resource in the audit")
        expect_equal(entries[0]["actor"]["kind"], "api-key", "the kind of actor in the audit")
        return answer
