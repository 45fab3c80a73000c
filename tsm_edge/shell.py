"""Commands as people write and read them in this machine's own shell."""
from __future__ import annotations

import os
import shlex
import subprocess


def quote(word):
    """A word of a command that is printed, quoted where it must be."""
    return subprocess.list2cmdline([word]) if os.name == "nt" else shlex.quote(word)


def split(command):
    """The words of a command that was typed; the backslashes of Windows' paths stay."""
    return [word.strip('"') for word in shlex.split(command, posix=False)] if os.name == "nt" else shlex.split(command)
