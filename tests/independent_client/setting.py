"""What the steps share: the replicas, an administrator, a relying party, and the fleet."""

import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jwt
from cryptography import x509

from .administration import Administration
from .client import Connection, trust_in
from .expectation import expect, expect_equal, expect_members
from .grant_tokens import RelyingParty
from .machine import Machine
from .policy import Policy

Result = TypeVar("Result")


@dataclass
class Setting:
    """Connections are kept alive from step to step."""

    servers: list[str]
    replicas: list[Connection]
    administration: Administration
    relying_party: RelyingParty
    public_url: str
    revocation_url: str
    roots: str
    trust: ssl.SSLContext
    fleet: list[Machine] = field(default_factory=list)
    policy: Policy | None = None

    @classmethod
    def discover(cls, servers: list[str], revocation_url: str, api_key: str, roots: str) -> "Setting":
        """Reads what a relying party reads, at every replica, and compares."""
        trust = trust_in(roots)
        replicas = [Connection(url, trust) for url in servers]
        relying_party = RelyingParty(servers[0], trust)
        expect_relying_party_documents(replicas, roots, relying_party.issuer)
        administration = Administration(Connection(servers[0], trust, api_key))
        issuer = relying_party.issuer
        return cls(servers, replicas, administration, relying_party, issuer, revocation_url, roots, trust)

    def machine(self, serial_number: str, role: str = "desk") -> Machine:
        """A machine that is not on record yet."""
        return Machine(serial_number, self.public_url, role)

    def of_role(self, role: str) -> list[Machine]:
        """The machines of the fleet with this role, in the order of their enrollment."""
        return [machine for machine in self.fleet if machine.role == role]

    def in_parallel(
        self, call: Callable[[Connection, Any], Result], items: list[Any], threads: int = 8
    ) -> list[Result]:
        """Calls for every item, at the replicas in turn, each thread with connections of its own."""

        def work(first: int) -> list[tuple[int, Result]]:
            connections = [Connection(url, self.trust) for url in self.servers]
            done = [
                (number, call(connections[(number // threads + first) % len(connections)], items[number]))
                for number in range(first, len(items), threads)
            ]
            for connection in connections:
                connection.close()
            return done

        with ThreadPoolExecutor(threads) as pool:
            results = [result for results in pool.map(work, range(threads)) for result in results]
        return [result for _, result in sorted(results, key=lambda result: result[0])]

    def at_every_replica(self, path: str) -> list[Any]:
        """The JSON that each answers to a GET."""
        return [replica.call("GET", path).succeeded(200).json() for replica in self.replicas]

    def expect_token_is_refused_elsewhere(self, grants: list[dict[str, Any]]) -> None:
        """A relying party sees only its own: the token of one audience is worth nothing to another."""
        for grant in grants:
            self.relying_party.expect_refused(grant["token"], "https://elsewhere.example.com", jwt.InvalidAudienceError)

    def close(self) -> None:
        """Closes the connections; the next call opens them again."""
        for connection in (*self.replicas, self.administration.connection):
            connection.close()


def expect_relying_party_documents(replicas: list[Connection], roots: str, issuer: str) -> None:
    """The documents without credentials are there, and the same everywhere."""
    for replica in replicas:
        for path in ("/healthz", "/readyz"):
            replica.call("GET", path).succeeded(200)
        expect(replica.call("GET", "/openapi.json").succeeded(200).json()["openapi"].startswith("3."), "no OpenAPI 3")
        bundle = replica.call("GET", "/v1/ca/bundle.pem").succeeded(200).body.decode()
        expect_equal(
            x509.load_pem_x509_certificates(bundle.encode()),
            x509.load_pem_x509_certificates(roots.encode()),
            f"the roots at {replica.url}",
        )
        issuing, root = x509.load_pem_x509_certificates(replica.call("GET", "/v1/ca/chain.pem").succeeded(200).body)
        issuing.verify_directly_issued_by(root)
        der = replica.call("GET", "/v1/ca/issuer.cer").succeeded(200).body
        expect_equal(x509.load_der_x509_certificate(der), issuing, f"issuer.cer at {replica.url}")
        expect(root in x509.load_pem_x509_certificates(roots.encode()), "the chain ends at another root")
        discovery = replica.call("GET", "/.well-known/openid-configuration").succeeded(200).json()
        expect_equal(discovery["issuer"], issuer, f"issuer at {replica.url}")
        expect_equal(discovery["jwks_uri"], f"{issuer}/.well-known/jwks.json", f"jwks_uri at {replica.url}")
    key_sets = [replica.call("GET", "/.well-known/jwks.json").succeeded(200).json() for replica in replicas]
    expect(all(key_set == key_sets[0] for key_set in key_sets), "the replicas sign with different keys")
    for key in key_sets[0]["keys"]:
        expect_members(key, {"kty", "crv", "x", "y", "kid", "alg", "use"}, "the signing key")
        expect("d" not in key, "the private key is published")
