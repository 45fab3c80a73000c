"""Errors a person can act on: what was found, what was expected, what to do."""
from functools import partial


class TsmEdgeError(Exception):
    """Base of all errors this package raises on purpose.

    Parameters
    ----------
    problem : str
        One sentence that names the file, option or part concerned.
    found, expected, do : str
        What was found, what was expected, and what the reader should do next.
    """

    exit_code = 2

    def __init__(self, problem: str, *, found: object, expected: object, do: object) -> None:
        self.problem, self.found, self.expected, self.do = problem, str(found), str(expected), str(do)
        super().__init__(f"{problem}\n  found:    {self.found}\n  expected: {self.expected}\n  do:       {self.do}")

    def __reduce__(self):  # so that it comes whole from a worker process
        return partial(type(self), self.problem, found=self.found, expected=self.expected, do=self.do), ()


class InputError(TsmEdgeError):
    """A wrong argument, file, shape, target or source (exit code 2)."""


class CheckpointError(InputError):
    """A checkpoint that cannot be recognised or does not fit the network."""


class BundleError(InputError):
    """A bundle that is damaged, unsafe, or made for something else."""


class MissingComponentError(InputError):
    """A package or tool that is not installed; says which extra or package brings it."""


class CheckFailedError(TsmEdgeError):
    """A verification that did not hold (exit code 1)."""

    exit_code = 1
