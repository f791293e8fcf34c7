"""What a scenario is made of: steps that have a name, and expectations that hold or end it."""

import contextlib
from collections.abc import Iterator


class Unmet(Exception):
    """The server did something else than it promises."""


def expect(holds: object, message: str) -> None:
    """Ends the scenario with the message, unless `holds`."""
    if not holds:
        raise Unmet(message)


def expect_equal(found: object, expected: object, what: str) -> None:
    """Ends the scenario, unless what was found is what was expected."""
    expect(found == expected, f"{what} is {found!r}, not {expected!r}")


def expect_members(value: object, members: set[str], what: str) -> None:
    """Ends the scenario, unless the value is a JSON object with at least these members."""
    expect(isinstance(value, dict), f"{what} is not an object: {value!r}")
    missing = members - set(value)
    expect(not missing, f"{what} has no {', '.join(sorted(missing))}: {value!r}")


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Gives the part of the scenario within a name, which the message of a failure begins with."""
    try:
        yield
    except Unmet as unmet:
        raise Unmet(f"{name}: {unmet}") from unmet
    except Exception as error:
        raise Unmet(f"{name}: {type(error).__name__}: {error}") from error
