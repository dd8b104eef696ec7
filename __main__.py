"""The ``rawgrad`` command; also ``python -m rawgrad``.

``rawgrad bench`` belongs to the bench, all other subcommands to the recipes; neither room knows the
other, so they meet here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .kernels._errors import RawgradError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (by default the process's own) and give the exit code.

    A refusal of ours is one line on stderr and code 2, as for a wrong option; an interrupt is code 130.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["bench"]:
            from .bench.cli import main as bench

            return bench(arguments[1:])
        from .recipes.command import main as command

        return command(arguments)
    except RawgradError as error:
        print(f"rawgrad: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rawgrad: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
