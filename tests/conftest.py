"""How many examples a property test tries: few in `make test`, `MESH_EXAMPLES` (2,000) in `make prove`.

HYPOTHESIS_PROFILE or `--hypothesis-profile` chooses: `quick` (the default) or `prove`.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile("quick", deadline=None, print_blob=True)
settings.register_profile(
    "prove",
    max_examples=int(os.environ.get("MESH_EXAMPLES", "2000")),
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
