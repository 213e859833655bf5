"""`python -m training.child WORDS`: one command of lidc-cdam that ends with the process that started it."""

import os
import sys
import threading

from lidc_cdam.cli import main


def _end_with_parent() -> None:
    """Nothing is ever written to this process: its input ends when the parent is gone, however that was killed."""
    # Not `sys.stdin`, whose lock a thread that waits for it would keep from the interpreter at its end.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(main())
