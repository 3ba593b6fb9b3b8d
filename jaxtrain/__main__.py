"""The command `jaxtrain`, and `python -m jaxtrain`: hears signals first, then imports all that it needs."""

import sys

from jaxtrain.base.threads import leave_hanging_threads
from jaxtrain.cluster.stop import signals_of_command


def main() -> None:
    """Run the command line, and end though threads hang."""
    code = 0
    # Once its exit code is known, no signal may replace it while the interpreter ends.
    with signals_of_command(ignored_after=True) as stop:
        stop.importing = True
        from jaxtrain.cli.main import main as command

        try:
            command()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            stop.over = True
        leave_hanging_threads(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
