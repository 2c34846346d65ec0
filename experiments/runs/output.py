"""Standard output and error of a run, which outlast whoever reads them."""

import io
import os
import sys


class Lasting(io.RawIOBase):
    """A file descriptor whose bytes are dropped where they cannot be written.

    Nobody may read them any more, as the pipe is closed, or their disk may be full; a run of hours
    goes on.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Returns whether it is a terminal."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, content) -> int:
        """Returns how many bytes were taken, all of them if they were dropped."""
        try:
            return os.write(self._descriptor, content)
        except OSError:
            return len(content)


def outlast_readers() -> None:
    """Makes ``sys.stdout`` and ``sys.stderr`` lasting; what they cannot encode is escaped."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        usual = getattr(sys, name)
        if usual is None:  # closed before Python began
            lasting = open(os.devnull, "w")  # noqa: SIM115
        else:
            usual.flush()
            raw = io.BufferedWriter(Lasting(descriptor))
            lasting = io.TextIOWrapper(
                raw,
                encoding=usual.encoding,
                errors="backslashreplace",
                line_buffering=usual.isatty() or name == "stderr",
            )
        setattr(sys, name, lasting)
