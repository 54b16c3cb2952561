"""Standard streams whose reader may leave: a terminal that hangs up, a pipe to ``head``. The work goes on without it."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO, cast


class Outliving:
    """A text stream that drops what can no longer be written. All else is the stream's own.

    Args:
        stream: where the words go while somebody reads them.
        drops: whether an error of writing is one to live with.
    """

    def __init__(self, stream: TextIO, drops: Callable[[OSError], bool]) -> None:
        self._stream = stream
        self._drops = drops

    def write(self, text: str) -> int:
        """Write, or drop."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines, or drop them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, or drop what is left."""
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            if not self._drops(error):
                raise

    def __getattr__(self, name: str) -> Any:
        """Whatever else a stream has."""
        return getattr(self._stream, name)


def outlive_readers() -> None:
    """Let the process outlive its terminal, and progress its reader.

    Progress on stderr is for whoever listens. Answers on stdout are what was asked for: only a terminal that hung up is no
    reason to stop, a closed pipe still is.
    """
    if sys.stderr is not None:
        sys.stderr = cast("TextIO", Outliving(sys.stderr, lambda error: True))
    if sys.stdout is not None:
        sys.stdout = cast("TextIO", Outliving(sys.stdout, lambda error: error.errno == errno.EIO))
