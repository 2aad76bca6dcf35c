"""What reading one model may take: memory and work, charged before anything is computed.

A file of 161 bytes can ask for a kernel of 8 GiB, or for a product of constants that takes an
hour. So whatever makes numbers while a file is read, or will make some for one sample when the
network runs, here or in onnxruntime, says beforehand how many, and to one ``GraphLimits``.
"""

from __future__ import annotations

# The numbers that all values of a graph may hold for one sample, 2 GiB in float64, beside those
# that the file itself brings. ImageNet's larger networks take a fifth of it.
NUMBERS = 2**28
# Multiply-adds that constants may take until they are folded: a second or so.
FOLDING = 2**33
# Multiply-adds of one sample through the network: a hundred times those of ImageNet's larger ones.
RUNNING = 2**40

# Moving values takes several arrays of their places, for a while.
PLACE = 8

_REMEDY = "shrink the model or its input, or export the model with its constants folded"


class TooLarge(Exception):
    """A node that would take more than is left, with what it would take."""


class GraphLimits:
    """What is left for one model: of numbers that are kept, and of work.

    ``own``: the numbers that the file holds, each of which may be taken up once.
    """

    def __init__(
        self, own: int = 0, *, numbers: int = NUMBERS, folding: int = FOLDING,
        running: int = RUNNING,
    ) -> None:  # fmt: skip
        self.numbers = self._most = numbers + own
        self.folding, self._most_folding = folding, folding
        self.running, self._most_running = running, running

    def keep(self, numbers: int) -> None:
        """For numbers that stay. Raises ``TooLarge``, as all of these do."""
        self.borrow(numbers)
        self.numbers -= numbers

    def borrow(self, numbers: int) -> None:
        """For numbers that go again at once."""
        if not 0 <= numbers <= self.numbers:
            raise TooLarge(
                f"{numbers} numbers more, and the values of the graph pass the limit of "
                f"{self._most} numbers for one sample; {_REMEDY}"
            )

    def move(self, places: int) -> None:
        """For values that are moved: their places are kept, and taken up several times before."""
        self.borrow(PLACE * places)
        self.keep(places)

    def fold(self, steps: int) -> None:
        """For multiply-adds of constants."""
        if not 0 <= steps <= self.folding:
            raise TooLarge(
                f"{steps} multiply-adds more, and folding the graph's constants passes the limit "
                f"of {self._most_folding}; {_REMEDY}"
            )
        self.folding -= steps

    def run(self, steps: int) -> None:
        """For multiply-adds of one sample."""
        if not 0 <= steps <= self.running:
            raise TooLarge(
                f"{steps} multiply-adds more, and one sample passes the limit of "
                f"{self._most_running}; {_REMEDY}"
            )
        self.running -= steps
