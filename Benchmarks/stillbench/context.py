"""What all sections need, and sizes by form (quick or long)."""

import contextlib
import tempfile

from .machine import GIBIBYTE, MEBIBYTE


class Context:
    """One run of the benchmark."""

    def __init__(self, program, loads, results, is_quick, tmpfs, disk, map_program, untracked=None,
                 former=None):
        self.program, self.loads, self.results = program, loads, results
        self.is_quick = is_quick
        self.parents = {"tmpfs": tmpfs, "disk": disk}
        # Measures the change map by itself.
        self.map_program = map_program
        # A build of the program that marks nothing, to see what marking costs.
        self.untracked = untracked
        # An earlier build of the program.
        self.former = former
        self.rounds = 3 if is_quick else 9
        # Of contenders that a target compares, where a run takes a second or so.
        self.judged_rounds = self.rounds if is_quick else 15
        self.seconds = 0.2 if is_quick else 0.5
        self.memory_bytes = 256 * MEBIBYTE if is_quick else GIBIBYTE
        self.disk_bytes = 256 * MEBIBYTE if is_quick else GIBIBYTE
        self.cuts = 20 if is_quick else 100
        # Less than 368 do not tell a 99th percentile.
        self.judged_cuts = self.cuts if is_quick else 1000

    def origin_bytes(self, place):
        return self.memory_bytes if place == "tmpfs" else self.disk_bytes

    @contextlib.contextmanager
    def directory(self, place):
        """A directory of its own on tmpfs or on the disk, gone afterwards."""
        with tempfile.TemporaryDirectory(
            prefix="stillpoint-bench-", dir=self.parents[place]
        ) as directory:
            yield directory

    def in_turn(self, names, turn):
        """Who goes first alternates, so that nobody always follows the same other."""
        names = list(names)
        return names if turn % 2 == 0 else names[::-1]
