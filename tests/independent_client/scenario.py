"""What a fleet goes through, from the first token to a deleted machine, at two replicas of one server."""

from . import enrollment_steps, event_steps, evidence_steps, lifecycle_steps, registry_steps
from .check_ins import Tally, Task, check_in_many
from .expectation import expect, expect_equal, step
from .policy import GIT, VAULT, Policy, expect_outcome
from .setting import Setting


class Scenario:
    """The steps, in order. Each ends the scenario when the server does not do what it promises."""

    def __init__(
        self, servers: list[str], revocation_url: str, api_key: str, roots: str, machines: int
    ) -> None:
        with step("relying parties' documents"):
            self._setting = Setting.discover(servers, revocation_url, api_key, roots)
        self._machines = machines

    def run(self, check_ins: int, processes: int, threads: int) -> str:
        """Goes through everything. The summary is one line."""
        setting = self._setting
        enrolled = enrollment_steps.run(setting, self._machines)
        with step("permissions and grants"):
            chosen = [setting.of_role("build")[0], setting.of_role("desk")[0]]
            setting.policy = Policy(setting.administration, chosen)
            expect_first_check_ins(setting)
        with step(f"{check_ins} check-ins"):
            task = Task(setting.fleet, check_ins, threads, setting.servers, setting.roots, setting.policy)
            setting.close()
            tally, seconds = check_in_many(task, processes)
            expect_equal(tally.check_ins, check_ins, "the number of check-ins")
            expect_equal(tally.round_trips, check_ins, "the number of round trips")
        evidence_steps.run(setting)
        lifecycle_steps.run(setting)
        registry_steps.run(setting)
        event_steps.run(setting)
        with step("deleted grants"):
            expect_deleted_grants_are_gone(setting)
        return summary(enrolled, tally, seconds)


def expect_first_check_ins(setting: Setting) -> None:
    """Evaluation, check-in and token agree, on every replica."""
    for machine in setting.fleet[:10]:
        for replica in setting.replicas:
            answer = machine.check_in(replica).succeeded(200).json()
            expect_outcome(answer, machine, setting.policy)
            for grant in answer["grants"]:
                setting.relying_party.verify(grant, machine)
        evaluated = setting.administration.call("POST", "grants/evaluate", {"machine_id": machine.id})
        expect_outcome(evaluated.succeeded(200).json(), machine, setting.policy)
    setting.expect_token_is_refused_elsewhere(answer["grants"])


def expect_deleted_grants_are_gone(setting: Setting) -> None:
    """At the next check-in, on every replica; a permission is deleted with its grants only on request."""
    machine = setting.of_role("build")[0]
    setting.policy.delete_grant(setting.administration, GIT, "push")
    for replica in reversed(setting.replicas):
        expect_outcome(machine.check_in(replica).succeeded(200).json(), machine, setting.policy)
    permissions = list(setting.administration.list("permissions", 3))
    read = next(item for item in permissions if (item["audience"], item["name"]) == (VAULT, "read"))
    setting.administration.call("DELETE", f"permissions/{read['id']}").problem("conflict")
    setting.administration.delete(f"permissions/{read['id']}?cascade=true")
    grant_id = setting.policy.grants.pop((VAULT, "read"))
    setting.administration.call("GET", f"grants/{grant_id}").problem("not-found")
    for replica in setting.replicas:
        answer = machine.check_in(replica).succeeded(200).json()
        expect(answer["grants"], "everything is gone with one permission")
        expect_outcome(answer, machine, setting.policy)


def summary(enrolled: int, tally: Tally, seconds: float) -> str:
    """The line."""
    return (
        f"independent client: {enrolled} machines enrolled; {tally.check_ins} check-ins in {tally.round_trips} round "
        f"trips at two replicas, {tally.check_ins / seconds:.0f}/s; {tally.tokens} grant tokens verified, "
        f"{tally.denied} refusals as foretold; every step passed"
    )
