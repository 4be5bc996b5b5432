"""`python -m mesh.config` prints docs/configuration.md."""

from mesh.config.docs import page

print(page(), end="")  # noqa: T201
