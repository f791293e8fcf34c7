"""`python -m independent_client --server URL --server URL --api-key KEY`: runs the scenario, and says how it went."""

import argparse
import sys
from pathlib import Path

from .client import fetch_roots
from .expectation import Unmet
from .scenario import Scenario


def main() -> int:
    """0 and a line with counts, or 1 and a line that names the step and what was found."""
    parser = argparse.ArgumentParser(prog="independent_client", description=__doc__)
    parser.add_argument("--server", action="append", required=True, help="URL of a replica; the first is public_url")
    parser.add_argument("--api-key", required=True, help="of the role admin")
    parser.add_argument("--revocation-url", required=True, help="revocation.url, which certificates lead to")
    trust = parser.add_mutually_exclusive_group(required=True)
    trust.add_argument("--trust", type=Path, help="file with the roots (PEM)")
    trust.add_argument("--ca-fingerprint", help="SHA-256 of the root, which is then fetched from the first server")
    parser.add_argument("--check-ins", type=int, default=10_000)
    parser.add_argument("--machines", type=int, default=200, help="at least 20")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=4, help="of each process")
    arguments = parser.parse_args()
    if len(arguments.server) < 2 or arguments.machines < 20 or arguments.check_ins < arguments.machines:
        parser.error("it takes two replicas, 20 machines, and a check-in of each")
    try:
        if arguments.trust:
            roots = arguments.trust.read_text()
        else:
            roots = fetch_roots(arguments.server[0], arguments.ca_fingerprint)
        scenario = Scenario(arguments.server, arguments.revocation_url, arguments.api_key, roots, arguments.machines)
        print(scenario.run(arguments.check_ins, arguments.processes, arguments.threads))
    except Unmet as unmet:
        print(f"the independent client has failed: {unmet}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
