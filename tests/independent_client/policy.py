"""The permissions and grants of the scenario, and what follows from them for a machine, worked out on this side."""

from typing import Any

from .administration import Administration
from .expectation import expect, expect_equal
from .machine import Machine

VAULT, GIT = "https://vault.example.com", "https://git.example.com"
ALL = {"all": True}
BUILD = {"labels": {"role": "build"}}

Permissions = set[tuple[str, str]]


class Policy:
    """Makes permissions with a grant for each kind of selector and condition, and foretells the answers."""

    def __init__(self, administration: Administration, chosen: list[Machine]) -> None:
        self._chosen = {machine.id for machine in chosen}
        self.grants: dict[tuple[str, str], str] = {}
        healthy = {"sip_enabled": True, "min_os_version": "15.9", "key_store": "software", "secure_boot": "full"}
        protected = {"filevault_enabled": True, "firewall_enabled": True, "gatekeeper_enabled": True}
        attested = {"min_assurance": "attested", "max_attestation_age_days": 30}
        machine_ids = sorted(self._chosen)
        self._grant(administration, VAULT, "read", ALL, {})
        self._grant(administration, VAULT, "write", BUILD, healthy)
        self._grant(administration, VAULT, "seal", BUILD, {"min_assurance": "verified"})
        self._grant(administration, VAULT, "audit", ALL, attested)
        self._grant(administration, GIT, "push", BUILD, protected)
        self._grant(administration, GIT, "fetch", {"machine_ids": machine_ids}, {}, expires_at="2099-01-01T00:00:00Z")
        self._grant(administration, GIT, "tag", {"machine_ids": machine_ids} | BUILD, {})
        self._grant(administration, GIT, "deploy", ALL, {"mdm_enrolled": True})

    def outcome(self, machine: Machine) -> tuple[Permissions, dict[tuple[str, str], int]]:
        """What this machine is granted, and what it is denied with the number of its conditions that fail."""
        posture, is_build, is_chosen = machine.posture, machine.role == "build", machine.id in self._chosen
        granted = {(VAULT, "read")}
        denied = {(VAULT, "audit"): 2, (GIT, "deploy"): 1}
        if is_build:
            failing = {
                (VAULT, "write"): [not posture["sip_enabled"]],
                (VAULT, "seal"): [machine.assurance != "verified"],
                (GIT, "push"): [not posture["filevault_enabled"]],
            }
            granted |= {permission for permission, conditions in failing.items() if not any(conditions)}
            denied |= {permission: sum(conditions) for permission, conditions in failing.items() if any(conditions)}
        if is_chosen:
            granted.add((GIT, "fetch"))
        if is_chosen and is_build:
            granted.add((GIT, "tag"))
        return granted & set(self.grants), {key: count for key, count in denied.items() if key in self.grants}

    def delete_grant(self, administration: Administration, audience: str, permission: str) -> None:
        """Deletes a grant. After that, no machine has the permission."""
        grant_id = self.grants.pop((audience, permission))
        administration.delete(f"grants/{grant_id}")

    def _grant(
        self,
        administration: Administration,
        audience: str,
        name: str,
        selector: dict[str, Any],
        conditions: dict[str, Any],
        **more: Any,
    ) -> None:
        description = f"{name} at {audience}"
        body = {"audience": audience, "name": name, "description": description}
        permission = administration.create("permissions", body)
        body = {"permission_id": permission["id"], "selector": selector, "conditions": conditions} | more
        grant = administration.create("grants", body)
        expect_equal(grant["permission_id"], permission["id"], "permission_id")
        self.grants[audience, name] = grant["id"]


def expect_outcome(answer: dict[str, Any], machine: Machine, policy: Policy) -> None:
    """Compares what an answer grants and denies with what follows from the policy."""
    granted, denied = policy.outcome(machine)
    audiences = [grant["audience"] for grant in answer["grants"]]
    expect_equal(sorted(audiences), sorted({audience for audience, _ in granted}), "the audiences of the grants")
    found = {(grant["audience"], name) for grant in answer["grants"] for name in grant["permissions"]}
    expect_equal(found, granted, f"what {machine.serial_number} is granted")
    expect_equal(len(answer["denied"]), len(denied), f"the number of refusals of {answer['denied']!r}")
    for refusal in answer["denied"]:
        permission = (refusal["audience"], refusal["permission"])
        expect(permission in denied, f"{permission} is denied to {machine.serial_number}: {refusal}")
        expect_equal(len(refusal["reasons"]), denied[permission], f"the number of reasons of {refusal}")
        expect(all(isinstance(reason, str) and reason for reason in refusal["reasons"]), f"no words in {refusal}")
        if permission == (GIT, "deploy"):
            expect("unknown" in refusal["reasons"][0], f"a null is not said to be unknown in {refusal}")
