"""Rows of a comparison, compared."""

import json

TIMES = ("seconds", "finished")


def timeless(rows):
    """The rows as JSON has them, without what differs from run to run."""
    return json.loads(json.dumps([{name: value for name, value in row.items() if name not in TIMES} for row in rows]))
