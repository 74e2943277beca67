"""Entry of the command line: ``lossmith`` and ``python -m lossmith``."""

from __future__ import annotations

import importlib.util
import sys

NEEDED = ("click", "rich", "filelock", "jinja2", "matplotlib", "pandas", "pyarrow", "sklearn", "skrub")


def main() -> None:
    """Run the command line, or say what to install for it. An interrupt while it loads is one line and exit code 130."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"lossmith: the command line needs {', '.join(missing)}: pip install 'lossmith[compare]'", file=sys.stderr)
        raise SystemExit(2)
    try:
        from lossmith.cli import main as run  # after the check: it imports them

        run()
    except KeyboardInterrupt:
        print("lossmith: stopped", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
