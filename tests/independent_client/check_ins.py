"""Many check-ins: several processes with several threads, machines taking turns at both replicas."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass

from .certificates import certificate_thumbprint
from .client import Connection, trust_in
from .expectation import expect, expect_equal, expect_members
from .grant_tokens import RelyingParty
from .machine import Machine
from .policy import Policy, expect_outcome

ANSWER = {"machine_id", "status", "assurance", "grants", "denied", "next_check_in_seconds", "actions"}


@dataclass(frozen=True)
class Task:
    """What one process does: `count` check-ins of its machines, spread evenly over threads."""

    machines: list[Machine]
    count: int
    threads: int
    servers: list[str]
    roots: str
    policy: Policy


@dataclass
class Tally:
    """What came of it. `nonces` are those of the last answers, by machine id."""

    check_ins: int
    round_trips: int
    tokens: int
    denied: int
    nonces: dict[str, str]

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.check_ins + other.check_ins,
            self.round_trips + other.round_trips,
            self.tokens + other.tokens,
            self.denied + other.denied,
            self.nonces | other.nonces,
        )


NOTHING = Tally(0, 0, 0, 0, {})


def check_in_many(task: Task, processes: int) -> tuple[Tally, float]:
    """Divides the task among processes. The time, in seconds, is without that of starting the processes."""
    tasks = [
        Task(machines, count, task.threads, task.servers, task.roots, task.policy)
        for machines, count in zip(divide(task.machines, processes), parts(task.count, processes), strict=True)
    ]
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        start = manager.Barrier(processes)
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            results = list(pool.map(run_in_process, tasks, [start] * processes))
    tally = sum((part for part, _, _ in results), NOTHING)
    for machine in task.machines:
        machine.nonce = tally.nonces[machine.id]
    return tally, max(end for _, _, end in results) - min(begun for _, begun, _ in results)


def run_in_process(task: Task, start: "multiprocessing.Barrier") -> tuple[Tally, float, float]:
    """One process: waits for the others, and runs its threads."""
    relying_party = RelyingParty(task.servers[0], trust_in(task.roots))
    machines, counts = divide(task.machines, task.threads), parts(task.count, task.threads)
    start.wait(60)
    begun = time.monotonic()
    with ThreadPoolExecutor(task.threads) as pool:
        tallies = pool.map(lambda share, count: check_in_in_turn(task, relying_party, share, count), machines, counts)
        total = sum(tallies, NOTHING)
    return total, begun, time.monotonic()


def check_in_in_turn(task: Task, relying_party: RelyingParty, machines: list[Machine], count: int) -> Tally:
    """One thread: its machines check in one after the other, each with the nonce that the other replica gave it."""
    trust = trust_in(task.roots)
    connections = [Connection(url, trust) for url in task.servers]
    digests = {machine.id: certificate_thumbprint(machine.certificate) for machine in machines}
    tally = Tally(0, 0, 0, 0, {})
    for number in range(count):
        round_number, index = divmod(number, len(machines))
        machine = machines[index]
        answer = machine.check_in(connections[(round_number + index) % len(connections)]).succeeded(200).json()
        expect_members(answer, ANSWER, "the answer to a check-in")
        expect_equal(answer["machine_id"], machine.id, "machine_id")
        expect_equal(answer["status"], "active", "status")
        expect_equal(answer["assurance"], machine.assurance, "assurance")
        expect_outcome(answer, machine, task.policy)
        for grant in answer["grants"]:
            relying_party.verify(grant, machine, digests[machine.id])
        tally.check_ins += 1
        tally.tokens += len(answer["grants"])
        tally.denied += len(answer["denied"])
    for connection in connections:
        tally.round_trips += connection.round_trips
        expect(connection.round_trips > 0 or count < 2 * len(connections), f"no machine has checked in at {connection.url}")
        connection.close()
    tally.nonces = {machine.id: machine.nonce for machine in machines}
    return tally


def divide(machines: list[Machine], among: int) -> list[list[Machine]]:
    """Every machine to one of them, about as many to each."""
    return [machines[first::among] for first in range(among)]


def parts(count: int, among: int) -> list[int]:
    """As evenly as it goes."""
    return [count // among + (number < count % among) for number in range(among)]
