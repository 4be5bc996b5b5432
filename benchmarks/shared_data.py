"""The data beside the project (`../shared/data`): real outcomes and traffic, read from there and never copied."""

import csv
import gzip
import sys
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parents[2] / "shared" / "data"


def there(name: str) -> Path:
    """A file of it; where that is absent, the process ends with status 0 and says so: a skip, not a failure."""
    path = FOLDER / name
    if not path.is_file():
        print(f"skipped: ../shared/data/{name} is not there, and nothing of it comes with the project")
        sys.exit(0)
    return path


def rows(name: str) -> list[dict[str, str]]:
    """The rows of a gzipped CSV file."""
    with gzip.open(there(name), "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
