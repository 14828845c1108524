"""Print the one command of a README section: `python scripts/readme_command.py "Run it"`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def command_under(heading: str) -> str:
    """The only line of the first fenced block under the heading."""
    match = re.search(rf"^## {re.escape(heading)}$.*?^```\w*\n([^\n]+)\n```$", README.read_text(encoding="utf-8"), re.M | re.S)
    if match is None:
        raise SystemExit(f"README has no one-line fenced block under '## {heading}'")
    return match[1]


if __name__ == "__main__":
    print(command_under(sys.argv[1]))
