"""How many examples hypothesis tries: few in the check, many in a session of its own."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

__all__ = ["few", "load_profile"]

_times = 1


def load_profile(times: int) -> None:
    """Set by what every number of examples is multiplied. With 1, they are the same in each run."""
    global _times
    _times = times
    settings.register_profile("tests", deadline=None, derandomize=times == 1, database=None)
    settings.load_profile("tests")


def few(count: int) -> settings:
    """Return settings for a test that tries `count` examples; fixtures stay as they are between them."""
    return settings(max_examples=count * _times, suppress_health_check=[HealthCheck.function_scoped_fixture])
