"""What this process has got done: a counter for who watches from outside whether it still moves.

A batch trained or predicted and a picture decoded count one each, so there is something to see in every part of an
interval that may take long, the first one's decoding among them.
"""

_done = 0


def advance() -> None:
    """Count one more thing done."""
    global _done
    _done += 1


def done() -> int:
    """Return how much has been done since this process began."""
    return _done
