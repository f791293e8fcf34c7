"""Check-ins: what is accepted, and what is refused and how."""

import time

from .client import Connection
from .evidence import Key
from .expectation import expect, expect_equal, step
from .policy import VAULT, expect_outcome
from .setting import Setting

OVER_64_KIB = b'{"evidence": "' + b"a" * (64 << 10) + b'"}'


def run(setting: Setting) -> None:
    """Machines of the fleet, each step with one of its own."""
    machines = setting.of_role("desk")
    first, second = setting.replicas
    with step("both forms of a signature"):
        for s_is in ("low", "high", "low", "high"):
            machines[0].check_in(first, s_is=s_is).succeeded(200)
    with step("nonces"):
        expect_nonces(setting, first, second)
    with step("refused evidence"):
        expect_refused_evidence(setting)
    with step("bodies that are not requests"):
        expect_refused_bodies(first)
    with step("a clock that is off"):
        machines[1].check_in(second, iat=int(time.time()) + 3600).succeeded(200)
        skew = setting.administration.machine(machines[1].id)["clock_skew_seconds"]
        expect(3570 < skew < 3630, f"clock_skew_seconds is {skew} of a clock that is an hour fast")
    with step("a posture that changes"):
        machine = setting.of_role("build")[1]
        for value in (False, True):
            machine.posture["sip_enabled"] = value
            answer = machine.check_in(first).succeeded(200).json()
            expect_outcome(answer, machine, setting.policy)
            claimed = setting.administration.machine(machine.id)["posture"]["claimed"]
            expect_equal(claimed["sip_enabled"], value, "the posture on record")
        expect((VAULT, "write") in setting.policy.outcome(machine)[0], "the last posture passes")


def expect_nonces(setting: Setting, first: Connection, second: Connection) -> None:
    """A nonce serves once, on whichever replica; what a refusal carries serves again."""
    machine = setting.of_role("desk")[0]
    for method in ("HEAD", "GET"):
        older = first.call(method, "/v1/nonce").succeeded(204).nonce
    machine.nonce = newer = first.call("GET", "/v1/nonce").succeeded(204).nonce
    machine.check_in(second).succeeded(200)
    for replica in (second, first):
        machine.check_in(replica, eat_nonce=newer).problem("bad-nonce")
        machine.check_in(replica, eat_nonce=older).problem("bad-nonce")
    machine.check_in(first).succeeded(200)
    forged = machine.nonce[:-2] + ("AA" if machine.nonce[-2:] != "AA" else "BB")
    machine.check_in(first, eat_nonce=forged).problem("bad-nonce")
    machine.check_in(second).succeeded(200)
    # A nonce is used up by one machine, and still serves another.
    shared = second.call("HEAD", "/v1/nonce").nonce
    for other in setting.of_role("desk")[1:4]:
        other.check_in(first, eat_nonce=shared).succeeded(200)


def expect_refused_evidence(setting: Setting) -> None:
    """Each has a nonce that is fresh; the last check-in shows that the machine is none the worse."""
    machine, other = setting.of_role("desk")[:2]
    replica = setting.replicas[1]
    stranger = Key()
    for change in (
        {"aud": "https://other.example.com"},
        {"aud": f"{setting.public_url}/"},
        {"purpose": "renew"},
        {"purpose": "enroll"},
        {"sub": other.id},
        {"eat_profile": "urn:assay:evidence:2"},
        {"key": stranger, "header": {"kid": machine.key.thumbprint}},
        {"header": {"alg": "none"}},
        {"header": {"alg": "HS256"}},
        {"header": {"typ": "JWT"}},
        {"header": {"kid": other.key.thumbprint}},
    ):
        with step(", ".join(change)):
            claims = {name: value for name, value in change.items() if name not in ("key", "header")}
            machine.check_in(replica, key=change.get("key"), header=change.get("header"), **claims).problem(
                "bad-evidence"
            )
    machine.check_in(replica, key=stranger).problem("machine-unknown")
    machine.check_in(replica, sub="01890a5d-ac96-774b-bcce-b302099a8057").problem("machine-unknown")
    machine.check_in(replica, of_a_newer_agent={"is": "ignored"}).succeeded(200)
    body = {"evidence": machine.evidence(replica, "check-in"), "of_a_newer_agent": 1}
    machine.nonce = replica.call("POST", "/v1/check-in", body).succeeded(200).nonce


def expect_refused_bodies(replica: Connection) -> None:
    """Problems, whatever the body is."""
    for path in ("/v1/enroll", "/v1/check-in", "/v1/renew"):
        for content in (b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b'{"evidence": 1}', b'{"evidence": null}'):
            replica.call("POST", path, content=content).problem("malformed")
        replica.call("POST", path, content=OVER_64_KIB).problem("payload-too-large")
        replica.close()
        replica.call("POST", path, content=b"{}", headers={"Content-Type": "text/plain"}).problem(
            "unsupported-media-type"
        )
        replica.call("GET", path).problem("method-not-allowed")
    replica.call("DELETE", "/v1/nonce").problem("method-not-allowed")
    replica.call("GET", "/v1/no-such-thing").problem("not-found")
