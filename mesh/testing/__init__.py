"""For tests of your own graphs: a clock that jumps, a scripted provider, and a sink that keeps records.

def test_sums_go_to_the_calculator() -> None:
    mesh = scripted_mesh(graph, {"light": "42"})
    told = run(mesh.ask("What is 17 + 25?"))
    assert told.traversal.route == ["screen", "task", "calculator"]
"""

from mesh.testing.clock import FakeClock, VirtualLoop, run
from mesh.testing.meshes import RecordingSink, scripted_mesh, spec_of

__all__ = ["FakeClock", "RecordingSink", "VirtualLoop", "run", "scripted_mesh", "spec_of"]
