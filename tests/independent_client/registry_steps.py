"""The registry as administrators use it: lists, filters, labels, roles, and the audit."""

from typing import Any

from .administration import Administration
from .client import Connection
from .expectation import expect, expect_equal, expect_members, step
from .policy import expect_outcome
from .setting import Setting

EXAMPLES = {
    "GET": ["machines", "enrollment-tokens", "permissions", "grants", "audit", "api-keys"],
    "POST": ["enrollment-tokens", "permissions", "grants", "api-keys", "grants/evaluate"],
}


def run(setting: Setting) -> None:
    """None of it changes what machines are granted, but for labels."""
    with step("lists"):
        expect_pages(setting)
    with step("filters"):
        expect_filters(setting)
    with step("labels"):
        expect_labels(setting)
    with step("roles"):
        expect_roles(setting)
    with step("bodies of administrators"):
        expect_refused_bodies(setting.administration)
    with step("the audit's hash chain"):
        expect_audit_is_chained(setting.administration)


def expect_audit_is_chained(administration: Administration) -> None:
    """The newest entries may still wait for their hash; all others are in the chain, which holds."""
    sealed = [sum(entry["hash"] is not None for entry in administration.list("audit", 500))]
    verified = administration.read("audit/verify")
    sealed.append(sum(entry["hash"] is not None for entry in administration.list("audit", 500)))
    expect_members(verified, {"valid", "entries", "first_broken_id", "reason"}, "the verification")
    expect_equal((verified["valid"], verified["first_broken_id"]), (True, None), "the verification")
    entries = verified["entries"]
    expect(0 < sealed[0] <= entries <= sealed[1], f"{entries} entries are verified, of {sealed} with a hash")


def expect_pages(setting: Setting) -> None:
    """Whatever the size of a page, every machine is listed once, and in the same order."""
    everything = [machine["id"] for machine in setting.administration.list("machines", 500)]
    expect_equal(len(everything), len(set(everything)), "the number of machines in the list")
    missing = {machine.id for machine in setting.fleet} - set(everything)
    expect(not missing, f"the list lacks {missing}")
    for limit in (7, None):
        found = [machine["id"] for machine in setting.administration.list("machines", limit)]
        expect(found == everything, f"pages of {limit} list other machines")
    for parameters in ("limit=0", "limit=many", "cursor=forged"):
        setting.administration.call("GET", f"machines?{parameters}").problem("malformed")


def expect_filters(setting: Setting) -> None:
    """Each filter, against what the fleet knows of itself."""
    desk = setting.of_role("desk")
    one = desk[0]
    verified = {machine.id for machine in setting.fleet if machine.assurance == "verified"}
    for query, expected in (
        ("label=role:build", {machine.id for machine in setting.of_role("build")}),
        (f"q={one.serial_number.lower()}", {one.id}),
        (f"q={one.id}", {one.id}),
        (f"q={one.key.thumbprint}", {one.id}),
        ("q=no%25thing", set()),
        ("status=quarantined", set()),
        ("assurance=verified&status=active", verified),
        ("liveness=live&status=active", {machine.id for machine in setting.fleet}),
    ):
        found = {machine["id"] for machine in setting.administration.list(f"machines?{query}", 500)}
        expect(found == expected, f"?{query} lists {len(found)} machines, not {len(expected)}: {found ^ expected}")


def expect_labels(setting: Setting) -> None:
    """A label makes a machine one of a selector at its next check-in; null takes it away again."""
    machine = setting.of_role("desk")[0]
    before = setting.administration.machine(machine.id)["labels"]
    for labels, role in (({"role": "build", "floor": "3"}, "build"), ({"role": "desk", "floor": None}, "desk")):
        answer = setting.administration.call("PATCH", f"machines/{machine.id}", {"labels": labels})
        expect_equal(answer.succeeded(200).json()["labels"].get("role"), role, "the label")
        machine.role = role
        for replica in setting.replicas:
            expect_outcome(machine.check_in(replica).succeeded(200).json(), machine, setting.policy)
    expect_equal(setting.administration.machine(machine.id)["labels"], before, "the labels in the end")


def expect_roles(setting: Setting) -> None:
    """Who has no key, or one of another role, is told so."""
    unauthenticated = Administration(Connection(setting.servers[1], setting.trust))
    wrong = Administration(Connection(setting.servers[1], setting.trust, "not-a-key"))
    for administration in (unauthenticated, wrong):
        for method, paths in EXAMPLES.items():
            for path in paths:
                administration.call(method, path, {} if method == "POST" else None).problem("unauthenticated")
    machine_id = setting.fleet[0].id
    permission = {"audience": "https://role.example.com", "name": "read", "description": "a role"}
    calls: list[tuple[str, str, Any, dict[str, int]]] = [
        ("GET", "machines", None, {"viewer": 200, "operator": 200, "relying-party": 403}),
        ("POST", "grants/evaluate", {"machine_id": machine_id}, {"viewer": 200, "operator": 200, "relying-party": 403}),
        ("PATCH", f"machines/{machine_id}", {"note": "seen"}, {"viewer": 403, "operator": 200, "relying-party": 403}),
        ("POST", "permissions", permission, {"viewer": 403, "operator": 403, "relying-party": 403}),
        ("GET", "api-keys", None, {"viewer": 200, "operator": 200, "relying-party": 403}),
    ]
    for role in ("viewer", "operator", "relying-party"):
        created = setting.administration.create("api-keys", {"name": f"the {role}", "role": role})
        administration = Administration(Connection(setting.servers[1], setting.trust, created["key"]))
        for method, path, body, statuses in calls:
            answer = administration.call(method, path, body).succeeded(statuses[role])
            if answer.status == 403:
                answer.problem("forbidden")
        setting.administration.delete(f"api-keys/{created['id']}")
        administration.call("GET", "machines").problem("unauthenticated")


def expect_refused_bodies(administration: Administration) -> None:
    """An unknown field is named, and so is what is missing or mistyped; no resource is made."""
    permission = {"audience": "https://a.example.com", "name": "read", "description": ""}
    for path, body in (("permissions", permission), ("api-keys", {"name": "a", "role": "viewer"})):
        problem = administration.call("POST", path, body | {"colour": "red"}).problem("malformed")
        expect("colour" in problem["detail"], f"the detail does not name the field: {problem}")
    for path in EXAMPLES["POST"]:
        for body in ({}, [], 1):
            administration.call("POST", path, body).problem("malformed")
    for selector in ({}, {"all": False}, {"labels": {}, "colour": "red"}):
        body = {"permission_id": "01890a5d-ac96-774b-bcce-b302099a8057", "selector": selector, "conditions": {}}
        administration.call("POST", "grants", body).problem("malformed")
    administration.create("permissions", permission)
    administration.call("POST", "permissions", permission).problem("conflict")
    machine_id = next(administration.list("machines", 1))["id"]
    for method, path, body in (
        ("PATCH", f"machines/{machine_id}", {"colour": "red"}),
        ("PATCH", f"machines/{machine_id}", {"labels": {"role": 1}}),
        ("POST", f"machines/{machine_id}/quarantine", {}),
        ("POST", f"machines/{machine_id}/revoke", {"reason": None}),
    ):
        administration.call(method, path, body).problem("malformed")
    for path in ("machines", "permissions", "grants", "enrollment-tokens"):
        administration.call("GET", f"{path}/01890a5d-ac96-774b-bcce-b302099a8057").problem("not-found")
