"""Writes docs/configuration.md and configs/schema.json from docstrings, and the tables of docs/precision.md;
--check compares only."""

import sys
from pathlib import Path

from rft.reference import precision, reference, schema

ROOT = Path(__file__).parent.parent


def main() -> int:
    wanted = {
        "docs/configuration.md": reference(),
        "configs/schema.json": schema(),
        "docs/precision.md": precision((ROOT / "docs/precision.md").read_text()),
    }
    for name, text in wanted.items():
        path = ROOT / name
        if path.is_file() and path.read_text() == text:
            continue
        if "--check" in sys.argv:
            print(f"{name} is stale: run python scripts/make_reference.py", file=sys.stderr)
            return 1
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
