"""Times of the stages and rates, in constant memory however long the demo runs."""
import collections
import sys

import numpy as np

from tsm_edge.cli import columns


class Stages:
    """Milliseconds by stage: count, p50, p90, p99.

    The latest `keep` values of each stage count; older ones are forgotten.
    """

    def __init__(self, keep=5000):
        self._keep, self._values, self._counts = keep, {}, collections.Counter()

    def add(self, stage, milliseconds):
        if stage not in self._values:
            self._values[stage] = np.zeros(self._keep, np.float32)
        self._values[stage][self._counts[stage] % self._keep] = milliseconds
        self._counts[stage] += 1

    def rows(self):
        """[(stage, count, p50, p90, p99)] in the order in which stages first came; milliseconds."""
        rows = []
        for stage, values in self._values.items():
            count = self._counts[stage]
            rows.append((stage, count, *(float(v) for v in np.percentile(values[:min(count, self._keep)], (50, 90, 99)))))
        return rows


class Rate:
    """Events a second over the last moments."""

    def __init__(self, window=30):
        self._times = collections.deque(maxlen=window)

    def tick(self, now):
        self._times.append(now)

    @property
    def value(self):
        """Per second; 0 while fewer than two came."""
        if len(self._times) < 2 or self._times[-1] <= self._times[0]:
            return 0.0
        return (len(self._times) - 1) / (self._times[-1] - self._times[0])


def print_summary(rows, notes, file=sys.stderr):
    """The stages as a table, then a line for each note."""
    table = [("stage", "frames", "p50 ms", "p90 ms", "p99 ms")]
    table += [(stage, str(count), *(f"{value:.2f}" for value in values)) for stage, count, *values in rows]
    print(*columns(table), *notes, sep="\n", file=file)
