"""Entry of the command line: ``lossmith`` and ``python -m lossmith``."""

from __future__ import annotations

import importlib.util
import sys

NEEDED = ("click", "rich", "filelock", "jinja2", "matplotlib", "pandas", "pyarrow", "sklearn", "skrub")


def main() -> None:
    """Run the command line, or say what to install for it."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"lossmith: the command line needs {', '.join(missing)}: pip install 'lossmith[compare]'", file=sys.stderr)
        raise SystemExit(2)
    from lossmith.cli import main as run  # after the check: it imports them

    run()


if __name__ == "__main__":
    main()
