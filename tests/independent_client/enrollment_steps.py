"""Enrollment: tokens, the fleet, lost and parallel replies, and what is refused."""

import re
from functools import partial

from cryptography.hazmat.primitives.asymmetric import ec

from .certificates import verify_certificate
from .client import Answer, Connection
from .evidence import certificate_request, pem
from .expectation import expect, expect_equal, expect_members, step
from .machine import Machine
from .setting import Setting

UUID_V7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
ENROLLED = {
    "machine_id", "status", "assurance", "spiffe_id", "certificate", "trust_bundle", "next_check_in_seconds",
}  # fmt: skip


def run(setting: Setting, count: int) -> int:
    """Enrolls the fleet; returns how many machines it has."""
    bound = [setting.machine(f"BOUND{number:05}", "build") for number in range(count // 5)]
    build = [setting.machine(f"BUILD{number:05}", "build") for number in range(2 * count // 5)]
    desk = [setting.machine(f"DESK{number:06}") for number in range(count - len(bound) - len(build))]
    for machine in build[::4]:
        machine.posture["filevault_enabled"] = False
    for machine in build[::3]:
        machine.posture["sip_enabled"] = False
    with step("enrollment tokens"):
        # The numbers of uses leave nothing over: a token that is used up twice by one machine fails a step.
        shared_token = enrollment_token(setting, len(build), {"role": "build"})
        bound_token = enrollment_token(
            setting, len(bound), {"role": "build"}, serial_numbers=[machine.serial_number for machine in bound]
        )
        desk_token = enrollment_token(setting, len(desk), {"role": "desk"})
    with step("refused enrollments"):
        expect_refused_enrollments(setting, shared_token, bound_token)
    with step("a repeated enrollment"):
        expect_repeated_enrollment(setting, build[0], shared_token)
    with step("a parallel enrollment"):
        expect_parallel_enrollment(setting, desk[0], desk_token)
    with step("the fleet's enrollment"):
        for machines, token, assurance in (
            (build[1:], shared_token, "asserted"),
            (bound, bound_token, "verified"),
            (desk[1:], desk_token, "asserted"),
        ):
            answers = setting.in_parallel(partial(enroll_with, token), machines)
            for machine, answer in zip(machines, answers, strict=True):
                expect_enrolled(setting, machine, answer.succeeded(201), assurance)
    with step("used-up tokens"):
        for token in (shared_token, bound_token, desk_token):
            late = setting.machine("LATE000001")
            late.enroll(setting.replicas[1], token).problem("enrollment-token-invalid")
    setting.fleet = build + bound + desk
    return len(setting.fleet)


def enrollment_token(setting: Setting, max_uses: int, labels: dict[str, str], **more: object) -> str:
    """Creates one; its secret is shown this once."""
    body = {"description": "the fleet", "expires_in_seconds": 3600, "max_uses": max_uses, "labels": labels}
    body |= {"approval": "automatic", "allow_reenrollment": False}
    created = setting.administration.create("enrollment-tokens", body | more)
    expect(created["token"], "there is no token")
    return created["token"]


def enroll_with(token: str, connection: Connection, machine: Machine) -> Answer:
    """One machine of many."""
    return machine.enroll(connection, token)


def expect_refused_enrollments(setting: Setting, shared_token: str, bound_token: str) -> None:
    """None of these uses the token up, or makes a machine."""
    replica = setting.replicas[0]
    refuse = setting.machine("REFUSED001")
    for token in (None, "", "no-such-token", bound_token):
        refuse.enroll(replica, token).problem("enrollment-token-invalid")
    p384 = certificate_request(ec.generate_private_key(ec.SECP384R1()), "P-384")
    refuse.enroll(replica, shared_token, csr=p384).problem("bad-csr")
    lines = pem(refuse.key.csr()).splitlines()
    lines[3] = lines[3][::-1]
    for csr in ("\n".join(lines), "not a CSR"):
        body = {"token": shared_token, "csr": csr, "evidence": refuse.evidence(replica, "enroll")}
        answer = replica.call("POST", "/v1/enroll", body)
        answer.problem("bad-csr")
        refuse.nonce = answer.nonce
    another = setting.machine("REFUSED002")
    refuse.enroll(replica, shared_token, csr=another.key.csr()).problem("bad-evidence")
    refuse.enroll(replica, shared_token, purpose="check-in").problem("bad-evidence")
    refuse.enroll(replica, shared_token, aud="https://other.example.com").problem("bad-evidence")
    refuse.enroll(replica, shared_token, eat_nonce="forged").problem("bad-nonce")
    listed = list(setting.administration.list("machines?q=REFUSED"))
    expect_equal(listed, [], "the machines that refused enrollments have made")


def expect_repeated_enrollment(setting: Setting, machine: Machine, token: str) -> None:
    """A lost reply: the same machine, its current certificate, one use of the token."""
    first, second = setting.replicas
    expect_enrolled(setting, machine, machine.enroll(first, token).succeeded(201), "asserted")
    enrolled = (machine.id, machine.certificate)
    for replica in (second, first):
        expect_enrolled(setting, machine, machine.enroll(replica, token).succeeded(200), "asserted")
        expect_equal((machine.id, machine.certificate), enrolled, "what a repeated enrollment gives")
    used = machine.nonce
    machine.enroll(first, token).succeeded(200)
    machine.enroll(second, token, eat_nonce=used).problem("bad-nonce")


def expect_parallel_enrollment(setting: Setting, machine: Machine, token: str) -> None:
    """One key, many calls at once, at both replicas: one machine, one certificate that is new, one use of the token."""

    def enroll(connection: Connection, same: Machine) -> Answer:
        for _ in range(20):
            answer = same.enroll(connection, token)
            # A nonce that is older than the last one this machine used: overtaken by another of these calls.
            if answer.status != 400:
                return answer
            answer.problem("bad-nonce")
        return answer

    same_key = [Machine(machine.serial_number, machine.audience, key=machine.key) for _ in range(8)]
    for same in same_key:
        same.hardware_uuid = machine.hardware_uuid
    answers = setting.in_parallel(enroll, same_key)
    expect_equal(sorted(answer.status for answer in answers), [200] * 7 + [201], "the statuses of parallel enrollments")
    enrolled = {(answer.json()["machine_id"], answer.json()["certificate"]["serial_number"]) for answer in answers}
    expect_equal(len(enrolled), 1, "the number of machines and certificates of one key")
    expect_enrolled(setting, machine, machine.enroll(setting.replicas[0], token).succeeded(200), "asserted")


def expect_enrolled(setting: Setting, machine: Machine, answer: Answer, assurance: str) -> None:
    """The answer and the certificate are as the contract has them."""
    enrolled = answer.json()
    expect_members(enrolled, ENROLLED, str(answer))
    expect(UUID_V7.fullmatch(enrolled["machine_id"]), f"the machine id {enrolled['machine_id']} is no UUIDv7")
    expect_equal(enrolled["status"], "active", "status")
    expect_equal(enrolled["assurance"], assurance, "assurance")
    expect(enrolled["next_check_in_seconds"] > 0, f"next_check_in_seconds is {enrolled['next_check_in_seconds']}")
    expect_equal(enrolled["trust_bundle"].strip(), setting.roots.strip(), "trust_bundle")
    spiffe_id = enrolled["spiffe_id"]
    expect(re.fullmatch(rf"spiffe://[a-z0-9.-]+/machine/{machine.id}", spiffe_id), f"spiffe_id is {spiffe_id}")
    verify_certificate(machine.certificate, machine.key, machine.id, spiffe_id, setting.revocation_url, setting.roots)
