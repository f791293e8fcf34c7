"""From renewal to deletion: what administrators decide holds at once, at every replica."""

from .certificates import certificate_thumbprint, verify_certificate
from .enrollment_steps import enrollment_token, expect_enrolled
from .evidence import Key
from .expectation import expect, expect_equal, expect_members, step
from .machine import Machine
from .policy import expect_outcome
from .setting import Setting

PENDING = {"enrollment_id", "machine_id", "status", "retry_after_seconds"}


def run(setting: Setting) -> None:
    """Machines of the fleet, each step with one of its own."""
    build, desk = setting.of_role("build"), setting.of_role("desk")
    with step("renewal"):
        expect_renewal(setting, build[0])
    with step("quarantine and release"):
        expect_quarantine(setting, desk[0])
    with step("a copied identity"):
        expect_identity_mismatch(setting, desk[1])
    with step("re-enrollment with a token"):
        expect_reenrollment_with_a_token(setting, desk[2])
    with step("re-enrollment by approval"):
        expect_reenrollment_by_approval(setting, desk[3])
    with step("enrollment by approval"):
        expect_enrollment_by_approval(setting)
    with step("revocation"):
        expect_revocation(setting, desk[-1])
    with step("deletion"):
        expect_deletion(setting, desk[-2])
    setting.fleet = [machine for machine in setting.fleet if machine not in desk[-2:]]


def expect_renewal(setting: Setting, machine: Machine) -> None:
    """A new certificate for the same key; the grants are bound to it from then on."""
    first, second = setting.replicas
    before = machine.certificate
    machine.renew(first, csr_sha256="A" * 43).problem("bad-evidence")
    answer = machine.renew(second).succeeded(200).json()
    expect_members(answer, {"certificate", "trust_bundle"}, "the answer to a renewal")
    expect(machine.certificate["serial_number"] != before["serial_number"], "the serial number is the old one")
    grants = machine.check_in(first).succeeded(200).json()["grants"]
    spiffe_id = setting.relying_party.claims(grants[0])["sub"]
    verify_certificate(machine.certificate, machine.key, machine.id, spiffe_id, setting.revocation_url, setting.roots)
    for replica in (first, second):
        for grant in machine.check_in(replica).succeeded(200).json()["grants"]:
            setting.relying_party.verify(grant, machine, certificate_thumbprint(machine.certificate))
    on_record = setting.administration.machine(machine.id)["certificate"]
    expect_equal(on_record["serial_number"], machine.certificate["serial_number"], "the certificate on record")


def expect_quarantine(setting: Setting, machine: Machine) -> None:
    """Refused everywhere until it is released."""
    setting.administration.act(machine.id, "quarantine", "stolen bag")
    expect_refused_everywhere(setting, machine, "machine-quarantined")
    machine.renew(setting.replicas[0]).problem("machine-quarantined")
    record = setting.administration.machine(machine.id)
    expect_equal((record["status"], record["status_reason"]), ("quarantined", "stolen bag"), "the status on record")
    setting.administration.act(machine.id, "release", "found again")
    expect_admitted_everywhere(setting, machine)
    expect(list(setting.administration.list(f"machines/{machine.id}/events")), "there are no events")


def expect_identity_mismatch(setting: Setting, machine: Machine) -> None:
    """A key that shows up in another Mac quarantines its machine."""
    first, second = setting.replicas
    machine.check_in(first, machine=machine.identity() | {"serial_number": "COPY000001"}).problem("identity-mismatch")
    machine.check_in(second).problem("machine-quarantined")
    setting.administration.act(machine.id, "release", "a test")
    machine.check_in(second, machine=machine.identity() | {"hardware_uuid": "0" * 8}).problem("identity-mismatch")
    machine.check_in(first).problem("machine-quarantined")
    setting.administration.act(machine.id, "release", "a test")
    expect_admitted_everywhere(setting, machine)


def expect_reenrollment_with_a_token(setting: Setting, machine: Machine) -> None:
    """The record stays, the old key is superseded, and its assurance is that of the new enrollment."""
    bound = {"serial_numbers": [machine.serial_number], "allow_reenrollment": True}
    token = enrollment_token(setting, 1, {}, **bound)
    machine_id, old_key = machine.id, machine.key
    machine.key = Key()
    answer = machine.enroll(setting.replicas[0], token).succeeded(201)
    expect_enrolled(setting, machine, answer, "verified")
    expect_equal(machine.id, machine_id, "the machine id after re-enrollment")
    for replica in setting.replicas:
        machine.check_in(replica, key=old_key).problem("key-superseded")
    expect_admitted_everywhere(setting, machine)


def expect_reenrollment_by_approval(setting: Setting, machine: Machine) -> None:
    """A new key without such a token waits, and the old one works meanwhile."""
    token = enrollment_token(setting, 1, {})
    old_key, machine_id = machine.key, machine.id
    waiting = setting.machine(machine.serial_number)
    waiting.hardware_uuid = machine.hardware_uuid
    enrollment_id = expect_pending(setting, waiting, token, None)
    expect_admitted_everywhere(setting, machine)
    approve(setting, enrollment_id)
    # The old key has checked in since: the nonce that the new one was given is older, and both are one machine now.
    waiting.nonce = None
    waiting.enroll(setting.replicas[1], token).succeeded(200, 201)
    expect_equal(waiting.id, machine_id, "the machine id after re-enrollment")
    waiting.check_in(setting.replicas[0], key=old_key).problem("key-superseded")
    expect_admitted_everywhere(setting, waiting)
    machine.key, machine.certificate, machine.nonce = waiting.key, waiting.certificate, waiting.nonce
    machine.assurance = waiting.assurance
    expect_equal(machine.assurance, "verified", "the assurance that an approval gives")


def expect_enrollment_by_approval(setting: Setting) -> None:
    """A token that asks for approval: the machine waits, and may be approved or denied."""
    token = enrollment_token(setting, 2, {"role": "desk"}, approval="manual")
    approved, denied = setting.machine("MANUAL0001"), setting.machine("MANUAL0002")
    for machine in (approved, denied):
        enrollment_id = expect_pending(setting, machine, token, machine.id)
        machine.check_in(setting.replicas[1]).problem("machine-pending")
        if machine is approved:
            approve(setting, enrollment_id)
        else:
            path, body = f"enrollments/{enrollment_id}/deny", {"reason": "nobody knows it"}
            setting.administration.call("POST", path, body).succeeded(200, 204)
    expect_enrolled(setting, approved, approved.enroll(setting.replicas[1], token).succeeded(200, 201), "verified")
    expect_admitted_everywhere(setting, approved)
    problem = denied.enroll(setting.replicas[1], token).problem("enrollment-denied")
    expect("nobody knows it" in problem["detail"], f"the detail has no reason: {problem}")
    expect_refused_everywhere(setting, denied, "enrollment-denied")
    setting.fleet.append(approved)


def expect_pending(setting: Setting, machine: Machine, token: str, machine_id: str | None) -> str:
    """Enrolls twice, and is told twice to wait. The id is the enrollment's."""
    for replica in setting.replicas:
        answer = machine.enroll(replica, token).succeeded(202)
        pending = answer.json()
        expect_members(pending, PENDING, str(answer))
        expect_equal(pending["status"], "pending", "status")
        expect_equal(int(answer.headers["Retry-After"]), pending["retry_after_seconds"], "Retry-After")
        machine.id = pending["machine_id"]
    listed = list(setting.administration.list("enrollments?status=pending"))
    expect_equal([item["id"] for item in listed], [pending["enrollment_id"]], "the enrollments that wait")
    expect_equal(listed[0]["key"]["thumbprint"], machine.key.thumbprint, "the key that waits")
    return pending["enrollment_id"]


def approve(setting: Setting, enrollment_id: str) -> None:
    """As an administrator does who knows the machine."""
    path = f"enrollments/{enrollment_id}/approve"
    setting.administration.call("POST", path, {"reason": "called its owner"}).succeeded(200, 204)


def expect_revocation(setting: Setting, machine: Machine) -> None:
    """Final: neither check-in nor renewal nor enrollment, anywhere, and its certificates are revoked."""
    setting.administration.act(machine.id, "revoke", "sold")
    expect_refused_everywhere(setting, machine, "machine-revoked")
    machine.renew(setting.replicas[1]).problem("machine-revoked")
    machine.enroll(setting.replicas[0], None).problem("machine-revoked")
    expect_equal(setting.administration.machine(machine.id)["status"], "revoked", "the status on record")
    certificates = list(setting.administration.list(f"machines/{machine.id}/certificates"))
    expect(certificates, "there are no certificates")
    for certificate in certificates:
        expect("privilege_withdrawn" in certificate.values(), f"it is not revoked: {certificate}")
    answer = setting.administration.call("POST", f"machines/{machine.id}/release", {"reason": "regret"})
    answer.problem("conflict")


def expect_deletion(setting: Setting, machine: Machine) -> None:
    """The record is gone; the audit stays, and the key does not come back."""
    setting.administration.delete(f"machines/{machine.id}")
    expect_refused_everywhere(setting, machine, "machine-unknown")
    machine.enroll(setting.replicas[1], None).problem("machine-revoked")
    entries = list(setting.administration.list(f"audit?resource=machine:{machine.id}"))
    expect(entries, "the audit is gone with the machine")


def expect_refused_everywhere(setting: Setting, machine: Machine, slug: str) -> None:
    """At every replica, each with a nonce that is fresh."""
    for replica in (*setting.replicas, *reversed(setting.replicas)):
        machine.check_in(replica).problem(slug)


def expect_admitted_everywhere(setting: Setting, machine: Machine) -> None:
    """At every replica, with the grants that follow from the policy."""
    for replica in setting.replicas:
        answer = machine.check_in(replica).succeeded(200).json()
        machine.assurance = answer["assurance"]
        expect_outcome(answer, machine, setting.policy)
