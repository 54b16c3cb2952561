"""``python -m tunesmith`` is ``tunesmith``: where the command line starts."""

from __future__ import annotations

from tunesmith.signals import end_quietly

end_quietly()  # until the command line is loaded and watches signals itself

from tunesmith.cli.main import main  # noqa: E402 - loading it takes the time in which Ctrl-C must not show a traceback

if __name__ == "__main__":
    main()
