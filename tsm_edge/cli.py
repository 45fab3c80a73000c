"""Habits shared by every command line: exit codes, nearest-match choices, verdict line."""
import difflib
import errno
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence

from .errors import InputError, TsmEdgeError


def choose(name: object, options: "Iterable[str]", what: str) -> str:
    """Return `name` if it is one of `options`; else refuse it, naming the nearest option.

    Raises
    ------
    InputError
    """
    options = list(options)
    if name in options:
        return name
    near = difflib.get_close_matches(str(name), options, n=1, cutoff=0.0 if len(options) < 4 else 0.4)
    hint = f"did you mean '{near[0]}'?" if near else "pick one of those"
    raise InputError(f"unknown {what}", found=f"'{name}'", expected=", ".join(options), do=hint)


def _with_room(main, argv):
    """`main(argv)`, with a full disk in words."""
    try:
        return main(argv)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError("the disk is full", found=str(error), expected="room for what is written, and for temporary files in "
                         + tempfile.gettempdir(), do="make room; TMPDIR=FOLDER puts temporary files elsewhere") from error


def _any_letter():
    """Let stdout take every letter: on Windows as UTF-8, elsewhere those that the system's encoding lacks as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if os.name == "nt" and hasattr(stream, "reconfigure"):  # else into files and pipes goes the code page, which lacks most letters
            stream.reconfigure(encoding="utf-8")
    out = sys.stdout
    if hasattr(out, "buffer") and out.errors != "backslashreplace" and (out.encoding or "").lower().replace("-", "") != "utf8":
        sys.stdout = io.TextIOWrapper(out.buffer, out.encoding, "backslashreplace", line_buffering=out.line_buffering)


def run(main: "Callable[[list[str]], int | None]", argv: "list[str] | None" = None) -> None:
    """Run `main(argv) -> int | None` and exit the process: 0 fine, 1 a check failed, 2 wrong usage or input."""
    _any_letter()
    try:
        code = _with_room(main, sys.argv[1:] if argv is None else argv) or 0
        sys.stdout.flush()  # here it is found out that nobody reads, and not when Python ends
    except TsmEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # who read us has seen enough: tsm-demo --events - | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end
        code = 0
    sys.exit(code)


def check_ranges(options: object, ranges: dict) -> None:
    """Refuse numbers out of {option's name: (least, most)}; most None is no end. None is an option left out, NaN in no range.

    Raises
    ------
    InputError
    """
    for name, (least, most) in ranges.items():
        value = getattr(options, name, None)
        if value is not None and not (least <= value and (most is None or value <= most)):
            raise InputError(f"--{name.replace('_', '-')} cannot be used", found=str(value),
                             expected=f"{least} or more" if most is None else f"{least} to {most}", do="pick another")


def echo(options: "Mapping[str, object]") -> None:
    """The options that take effect, {name: value}, as a line on stderr."""
    print("options: " + ", ".join(f"{name}={value}" for name, value in options.items()), file=sys.stderr)


def verdict(text: str, as_json: bool) -> None:
    """The last line of a command: on stdout, but where that is for machines."""
    print(text, file=sys.stderr if as_json else sys.stdout)


def columns(table: "Sequence[Sequence[str]]") -> "list[str]":
    """Lines of a table (rows of texts, the first of them its head), indented by two; columns of numbers stand to the right."""
    aligned = []
    for column in zip(*table):
        width = max(len(cell) for cell in column)
        number = all(re.match(r"[-+]?[\d.,]*(e[-+]?\d+)?( ?%)?$", cell) for cell in column[1:])
        aligned.append([cell.rjust(width) if number else cell.ljust(width) for cell in column])
    return ["  " + "  ".join(line).rstrip() for line in zip(*aligned)]
