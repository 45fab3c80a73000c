"""macOS and Windows are makers' machines too: outside of benchmarks/ nothing names what they lack, and no text depends on their habits."""
import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("tsm_edge", "export", "runtimes", "demo", "training")
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
MISSING = {  # of modules that every system has: what Windows or macOS lacks, or means something else by
    "signal": r"SIG(?!(INT|TERM|ABRT|FPE|ILL|SEGV|_IGN|_DFL|nals)$)\w+|alarm|setitimer|pause|sigwait\w*|pthread_\w+",
    "os": r"fork\w*|kill\w*|nice|rename|wait\w*|get(e?[ug]id|groups|pgid|pgrp|priority|loadavg|resuid)|set\w*id|sched_\w+|sysconf\w*|"
          r"posix_\w+|memfd_\w+|\w*pathconf|uname|statvfs|mk(fifo|nod)|[lf]?chown|fchmod|chroot|sync|sendfile|openpty|pipe2|p?(read|write)v|"
          r"pread|pwrite|lockf|W[A-Z]+|EX_\w+|O_(?!(RDONLY|WRONLY|RDWR|APPEND|CREAT|EXCL|TRUNC|BINARY)$)\w+",
    "time": r"clock_\w+", "platform": "freedesktop_os_release"}
PLACE = re.compile(r"/(proc|dev|usr|sys|etc|tmp|lib|opt|var|home)(/\S*)?")
GUARD = re.compile(r"hasattr\((os|signal|time)|sys\.platform|os\.name|platform\.system\(|runs_here\(\)")
ALLOWED = {  # (file, what): why it may stay
    ("export/targets/host.py", "/proc/cpuinfo"): "the host target is Linux's, and refused elsewhere before it is read",
    ("export/targets/host.py", "/sys/devices/system/cpu/cpu0/cache"): "as above",
    ("export/targets/boards.py", "/dev/video0"): "what is typed on the board",
    ("export/proof/on_target.py", "/usr/aarch64-linux-gnu"): "looked for beside qemu-user, which is Linux's",
    ("export/proof/on_target.py", "/usr/arm-linux-gnueabihf"): "as above",
    ("runtimes/library.py", "/proc/self/exe"): "read as a file that may be missing",
    ("runtimes/sources.py", "/dev/video"): "what an address of a camera begins with",
    ("runtimes/sources.py", "/dev/"): "as above",
}


def complaints(text):
    """[(what, line, words)] about a file's text: names, modules, places and encodings that are not every system's."""
    tree = ast.parse(text)
    above = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    words = {node.body[0].value for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
             and node.body and isinstance(node.body[0], ast.Expr)}  # docstrings among them
    for node in ast.walk(tree):
        for what, say, error in _found(node):
            if not (isinstance(node, ast.Constant) and node in words) and not _guarded(node, above, error):
                yield what, node.lineno, say


def _found(node):
    """(what, words, the error that could be caught instead) for one node."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        yield from ((name, "a module of POSIX systems", "ImportError") for name in names if name in POSIX_MODULES)
    elif isinstance(node, ast.Attribute):
        module = node.value.id if isinstance(node.value, ast.Name) else ""
        of_path = node.attr == "rename" and re.search("path|part|folder|file|Path|/", ast.unparse(node.value))
        if re.fullmatch(MISSING.get(module, "(?!)"), node.attr) or of_path:
            yield ast.unparse(node), "not on every system, or other there (rename: replace)", "AttributeError"
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and PLACE.fullmatch(node.value):
        yield node.value, "a place of Linux", "OSError"
    elif isinstance(node, ast.Call):
        called, keywords = ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called.endswith("CDLL") and [ast.unparse(arg) for arg in node.args] == ["None"]:
            yield "CDLL(None)", "the process itself is no library on Windows", "TypeError"
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and re.fullmatch("[rwaxbt+]{1,3}", str(arg.value))]
        opens = called in ("open", "io.open", "os.fdopen") or called.endswith(".open") and (modes or not node.args and not keywords)
        as_text = opens and "b" not in "".join(modes) or called.endswith(".read_text") or keywords.get("text") == "True"
        if as_text and "encoding" not in keywords or "universal_newlines" in keywords:
            yield called, "text without encoding=: Windows takes its code page", ""
        if called.endswith(".write_text") or as_text and set("wax") & set("".join(modes)) and "newline" not in keywords:
            yield called, "Windows writes other line ends: write_bytes(text.encode()), or newline=", ""


def _guarded(node, above, error):
    """Whether the node is reached where the system was asked for, or in a `try` that catches what is raised elsewhere."""
    while error and node in above:
        child, node = node, above[node]
        if isinstance(node, (ast.If, ast.IfExp)) and child is not node.test and GUARD.search(ast.unparse(node.test)):
            return True
        if isinstance(node, (ast.comprehension, ast.GeneratorExp, ast.ListComp, ast.BoolOp)) and GUARD.search(ast.unparse(node)):
            return True
        if isinstance(node, ast.Try) and child in node.body and any(
                error in ast.unparse(handler.type or ast.Name("")) for handler in node.handlers):
            return True
        for earlier in (block[:block.index(child)] for block in (getattr(node, "body", None), getattr(node, "orelse", None))
                        if isinstance(block, list) and child in block):
            if any(isinstance(step, ast.If) and GUARD.search(ast.unparse(step.test)) and
                   isinstance(step.body[-1], (ast.Return, ast.Raise, ast.Continue)) for step in earlier):
                return True
    return False


def test_nothing_asks_for_what_windows_or_macos_lacks():
    found, used = [], set()
    for file in (path.relative_to(ROOT).as_posix() for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))):
        for what, line, words in complaints((ROOT / file).read_text(encoding="utf-8")):
            used.add((file, what))
            if (file, what) not in ALLOWED:
                found.append(f"{file}:{line} {what}: {words}")
    assert not found, "\n".join(found)
    assert set(ALLOWED) <= used, f"allowed for nothing: {sorted(set(ALLOWED) - used)}"


@pytest.mark.parametrize("text, what", [
    ("signal.signal(signal.SIGHUP, stop)", "signal.SIGHUP"), ("import os, fcntl", "fcntl"), ("os.sysconf('SC_PAGE_SIZE')", "os.sysconf"),
    ("os.open(path, os.O_NOFOLLOW)", "os.O_NOFOLLOW"), ("open('/proc/cpuinfo', 'rb')", "/proc/cpuinfo"), ("part.rename(b)", "part.rename"),
    ("if sys.argv:\n os.sched_getaffinity(0)", "os.sched_getaffinity"), ("try:\n os.fork()\nexcept OSError:\n pass", "os.fork"),
    ("path.read_text()", "path.read_text"), ("open(path)", "open"), ("path.open('w', newline='')", "path.open"),
    ("path.write_text(text, encoding='utf-8')", "path.write_text"), ("open(path, 'w', encoding='utf-8')", "open"),
    ("subprocess.run(command, text=True)", "subprocess.run"), ("ctypes.CDLL(None).mallopt", "CDLL(None)")])
def test_a_name_of_one_system_is_seen(text, what):
    assert [found for found, _, _ in complaints(text)] == [what]


@pytest.mark.parametrize("text", [
    "if hasattr(signal, 'SIGHUP'):\n signal.signal(signal.SIGHUP, stop)", "len(os.sched_getaffinity(0)) if hasattr(os, 'x') else 1",
    "def alive(pid):\n if os.name == 'nt':\n  return True\n os.kill(pid, 0)", "signal.SIGTERM, signal.SIG_IGN, os.O_RDWR, os.getpid()",
    "[getattr(signal, name) for name in names if hasattr(signal, name)]", "def f():\n 'Reads /proc.'", "archive.open(member)",
    "try:\n file = open('/proc/cpuinfo', encoding='utf-8')\nexcept OSError:\n pass", "open(path, 'rb')", "help('/dev/video0 is a camera')",
    "open(path, 'a', encoding='utf-8', newline='\\n')", "subprocess.run(command, encoding='utf-8')"])
def test_what_is_guarded_or_every_systems_is_let_pass(text):
    assert list(complaints(text)) == []
