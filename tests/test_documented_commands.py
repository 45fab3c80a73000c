"""Every command line on the pages and in --help is one that the real parsers take, and every option named exists."""
import argparse
import configparser
import importlib
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch (extra [train]) is not installed")
pytest.importorskip("cv2", reason="OpenCV (extra [train]) is not installed")

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tsm_edge" / "weights" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOREIGN = ("torchrun", "pytest", "pip", "ruff", "tensorboard", "python -m tvm", "git", "v4l2-ctl")


def scripts():
    """{command: (module, function)} as setup.cfg installs them."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.entry_points"]["console_scripts"].split("\n")
    return {name.strip(): place.strip().split(":") for name, place in (line.split("=") for line in lines if "=" in line)}


SCRIPTS = scripts()
PROGRAM = "tsm_edge.pyz"  # in a bundle
BOARD = [f"{PROGRAM} verify", f"{PROGRAM} demo", f"{PROGRAM} bench"]
MODULES = ["tsm_edge.benchmarks.arm", "tsm_edge.benchmarks.arm.accuracy", "tsm_edge.benchmarks.few_clips", "tsm_edge.training.train",
           "tsm_edge.training.packaged", "tsm_edge.training.gestures.people"]


class Parsed(BaseException):
    """The parser took the arguments (.parser is the parser); nothing of the command has run."""

    def __init__(self, parser):
        self.parser = parser


def main_of(command):
    """The function main(argv) behind tsm-NAME, a module's dotted name, or a command of a bundle's program."""
    if command in SCRIPTS:
        module, function = SCRIPTS[command]
        return getattr(importlib.import_module(module), function)
    if command.startswith(PROGRAM):
        return lambda argv: importlib.import_module("tsm_edge.demo.board").main([*command.split()[1:], *argv])
    module = importlib.import_module(command)
    return (module if hasattr(module, "main") else importlib.import_module(command + ".__main__")).main


@pytest.fixture
def parse(monkeypatch):
    """parse(command, arguments, help=False) -> the parser that took them; fails with argparse's words."""
    plain = argparse.ArgumentParser.parse_args

    def run(command, arguments, help=False):
        def parse_args(self, args=None, namespace=None):
            if not help:
                plain(self, args, namespace)
            raise Parsed(self)

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        monkeypatch.setattr("tsm_edge.runtimes.verify.own_bundle", lambda: Path("bundle") if command.startswith(PROGRAM) else None)
        try:
            main_of(command)(list(arguments))
        except Parsed as parsed:
            return parsed.parser
        raise AssertionError(f"{command} parses no arguments")

    return run


def command_of(words):
    """(command, its arguments) in a list of words, or None: no command of ours."""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words and words[0] in SCRIPTS:
        return words[0], words[1:]
    for i, word in enumerate(words):
        if word == "-m" and words[i + 1].startswith("tsm_edge."):
            return words[i + 1], words[i + 2:]
        if Path(word).name == PROGRAM and len(words) > i + 1:
            return f"{PROGRAM} {words[i + 1]}", words[i + 2:]
    return None


def commands_in(lines):
    """Commands of ours in lines of shell: comments are left out, continued lines joined, && and | end a command."""
    text = "\n".join(lines).replace("\\\n", " ").replace("&&\n", "&& ")
    for name, value in re.findall(r'^([A-Z]+)="(.*)"$', text, re.M):
        text = text.replace("$" + name, value)
    for line in text.splitlines():
        words = shlex.split(line, comments=True) if re.search(r"tsm|\.py\b", line) else []
        part = []
        for word in [*words, "&&"]:
            if word in ("&&", "|", ";"):
                if command_of(part):
                    yield command_of(part)
                part = []
            else:
                part.append(word)


def shell_blocks(text):
    """Lines of a page's shell blocks: fenced as sh, or indented by four spaces."""
    fenced = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M))
    rest = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return fenced.splitlines() + [line[4:] for line in rest.splitlines() if line.startswith("    ")]


def inline(text):
    """Pieces of `code` within a page's sentences."""
    rest = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    rest = "\n".join(line for line in rest.splitlines() if not line.startswith("    "))
    return [" ".join(piece.split()) for piece in re.findall(r"`([^`]+)`", rest)]


def page_commands():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for command, arguments in commands_in(shell_blocks(text)):
            yield pytest.param(command, arguments, id=f"{page.name}: {shlex.join([command, *arguments])[:90]}")


@pytest.mark.parametrize("command, arguments", list(page_commands()))
def test_commands_of_the_pages_are_taken_by_their_parsers(parse, capsys, command, arguments):
    try:
        parse(command, arguments)
    except SystemExit:
        pytest.fail(f"{shlex.join([command, *arguments])}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("command", [*SCRIPTS, *MODULES, *BOARD])
def test_examples_in_the_help_are_taken_by_the_parser(parse, capsys, command):
    epilog = parse(command, [], help=True).epilog or ""
    # What an example is for stands to the right of it, two spaces or more away.
    lines = [re.split(r"\s{2,}(?![-\s])", line.strip())[0] if not line.rstrip().endswith("\\") else line for line in epilog.splitlines()]
    examples = list(commands_in(line.removeprefix("then: ") for line in lines))
    assert examples or command not in SCRIPTS, "no example in the help"
    for example, arguments in examples:
        try:
            parse(example, arguments)
        except SystemExit:
            pytest.fail(f"{shlex.join([example, *arguments])}\n{capsys.readouterr().err}")


def test_each_command_has_its_part_of_the_page_with_two_examples():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", page, re.S | re.M))
    assert set(parts) == set(SCRIPTS)
    for command, part in parts.items():
        examples = [found for found, _ in commands_in(shell_blocks(part)) if found == command]
        assert len(examples) >= 2, f"{command}: {len(examples)} examples"


def options_of(parser):
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {option for part in action.choices.values() for option in options_of(part)}
    return found


def test_options_named_in_sentences_exist(parse):
    known = {command: options_of(parse(command, [], help=True)) for command in [*SCRIPTS, *MODULES, *BOARD]}
    every, seen = set().union(*known.values()), 0
    for page in PAGES:
        for piece in inline(page.read_text(encoding="utf-8")):
            if piece.startswith(FOREIGN):
                continue
            named = re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", piece)
            ours = known.get(piece.split()[0], every)
            assert set(named) <= ours, f"{page.name}: `{piece}` names {sorted(set(named) - ours)}, which no parser has"
            seen += len(named)
    assert seen > 10


def parsers_of(parser):
    """The parser and those of its sub-commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                yield from parsers_of(part)


def faults_of(parser):
    """What is not in the one form of a help text: everyday options first, the others in groups, each with its words and its default."""
    here, everyday, *others = parser._action_groups
    options = [action for action in parser._actions if action.dest != "help" and not isinstance(action, argparse._SubParsersAction)]
    if len(everyday._group_actions) > 8:
        yield f"{len(everyday._group_actions)} everyday options: put some into groups"
    if len(options) > 8 and not others:
        yield "no groups"
    for action in options:
        name, text = "/".join(action.option_strings) or action.metavar, action.help or ""
        if not text or text[-1] == ".":
            yield f"{name}: no help, or a sentence: {text!r}"
        if action.nargs != 0 and not action.metavar:
            yield f"{name}: no metavar"
        said = re.search(r" \(default: ([^()]+)\)$", text)
        if len(re.findall(r"(?<!')default", text)) != bool(said) or re.search(r" \((\d[^ )]*|that of [^)]*)\)$", text):
            yield f"{name}: its default is not said as '(default: X)' at the end: {text!r}"
        elif isinstance(action.default, (int, float, str)) and not isinstance(action.default, bool) and action.default != "":
            value = action.default if isinstance(action.default, str) else f"{action.default:g}"
            if not said or said[1].split(", ")[0] != value and not (float_of(said[1]) == action.default):
                yield f"{name}: says {said and said[1]!r}, is {value!r}"


def float_of(text):
    try:
        return float(text.split(",")[0])
    except ValueError:
        return None


@pytest.mark.parametrize("command", [*SCRIPTS, *MODULES, *BOARD])
def test_help_has_one_form(parse, command):
    assert [fault for parser in parsers_of(parse(command, [], help=True)) for fault in faults_of(parser)] == []


def test_one_option_has_one_word_for_its_value_in_all_commands(parse):
    words = {}
    for command in [*SCRIPTS, *MODULES, *BOARD]:
        for parser in parsers_of(parse(command, [], help=True)):
            for action in parser._actions:
                if action.option_strings and action.nargs != 0:
                    words.setdefault(action.option_strings[-1], {}).setdefault(action.metavar, command)
                if "--json" in action.option_strings:
                    assert action.help.endswith("as JSON on stdout"), command
    several = {option: found for option, found in words.items() if len(found) > 1}
    assert set(several) == {"--output", "--frames"}, several  # a file, a folder or either; how many, and for tsm-export a file of them
    assert len(words) > 80


def test_a_help_text_in_another_form_would_be_seen():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2, help="threads (2)", metavar="N")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 2)", metavar="N")
    parser.add_argument("--root", help="default: none", metavar="DIR")
    parser.add_argument("--seed", help="a seed")
    parser.add_argument("--json", action="store_true")
    assert [fault.split(":")[0] for fault in faults_of(parser)] == ["--threads", "--rounds", "--root", "--seed", "--json"]
    for name in "abcd":
        parser.add_argument(f"--{name}", action="store_true", help="x")
    assert list(faults_of(parser))[:2] == ["10 everyday options: put some into groups", "no groups"]


def test_a_command_that_does_not_exist_would_be_seen(parse):
    lines = ["A=1 tsm-train --data x \\", "  --nonsense 3 && tsm-demo b  # --comment", "ssh u@b python3 n/device/tsm_edge.pyz demo --x"]
    found = list(commands_in(lines))
    assert found == [("tsm-train", ["--data", "x", "--nonsense", "3"]), ("tsm-demo", ["b"]), ("tsm_edge.pyz demo", ["--x"])]
    with pytest.raises(SystemExit):
        parse(*found[0])
