"""The number of examples of a property test that needs another one than its profile says."""

from hypothesis import settings


def examples(count: int) -> settings:
    """So many in `make test`; in `make prove` as many as every other test. Use it instead of `@settings`."""
    return settings() if settings.get_current_profile_name() == "prove" else settings(max_examples=count)
