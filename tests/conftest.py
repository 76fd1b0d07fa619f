"""How tests share two workers (`make test`): whole files, and the pipeline's as one.

Files have engines and servers that all of their tests use, and tests/pipeline has runs that all of its
files use.
"""

import os
from pathlib import Path

import pytest

# As the runner sets it: threads that wait for one another sleep soon, since there are two workers here.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = Path(item.fspath)
        group = path.parent.name if path.parent.name == "pipeline" else path.name
        item.add_marker(pytest.mark.xdist_group(group))
