"""The runtime's C files use one another in one direction: read off the symbols of their objects."""
import re

# file -> the files it must not use; "*": none at all
FORBIDDEN = {
    "tsm_system.c": "*",
    "tsm_threads.c": {"tsm_run.c", "tsm_tvm.c", "tsm_edge.c", "tsm_stream.c"},
    "tsm_tvm.c": {"tsm_run.c", "tsm_edge.c", "tsm_stream.c"},
    "tsm_run.c": {"tsm_threads.c", "tsm_edge.c", "tsm_stream.c"},
    "tsm_edge.c": {"tsm_stream.c"},
    "tsm_convert.c": "*",
    "tsm_preprocess.c": {"tsm_threads.c", "tsm_tvm.c", "tsm_run.c", "tsm_edge.c", "tsm_stream.c"},
}


def arrows(kit, sources, folder):
    """{file: {file it uses: symbols}} of C sources."""
    defined, wanted = {}, {}
    for source in sources:
        kit.run([*kit.host_compiler(), "-std=c99", "-O0", "-I", kit.RUNTIME, "-c", source, "-o", folder / "x.o"])
        symbols = re.findall(r"^[0-9a-f ]*([A-Za-z]) (\S+)$", kit.run(["nm", folder / "x.o"]), flags=re.M)
        wanted[source.name] = {name for kind, name in symbols if kind in "Uw"}
        defined.update({name: source.name for kind, name in symbols if kind in "TDBRVW"})
    found = {name: {} for name in wanted}
    for name, symbols in wanted.items():
        for symbol in symbols & defined.keys():
            found[name].setdefault(defined[symbol], set()).add(symbol)
    return found


def faults(found):
    """What is wrong with arrows: forbidden ones, and circles as "a -> b -> a"."""
    wrong = [f"{name} -> {other}: {', '.join(sorted(symbols))}" for name, used in found.items() for other, symbols in used.items()
             if FORBIDDEN.get(name) == "*" or other in FORBIDDEN.get(name, ())]

    def walk(way):
        for other in sorted(found[way[-1]]):
            if other == way[0]:
                wrong.append(" -> ".join([*way, other]))
            elif other > way[0] and other not in way:  # a circle is told once, from its first file
                walk([*way, other])

    for name in sorted(found):
        walk([name])
    return wrong


def test_no_file_uses_one_above_it_and_there_is_no_circle(kit, tmp_path):
    found = arrows(kit, kit.SOURCES, tmp_path)
    assert set(FORBIDDEN) < set(found) and "tsm_aligned_alloc" in found["tsm_threads.c"]["tsm_system.c"]
    assert faults(found) == []


def test_forbidden_arrows_and_circles_are_found(kit, tmp_path):
    texts = {"tsm_system.c": "int up(void); int low(void) { return up(); }", "upper.c": "int low(void); int up(void) { return low(); }",
             "third.c": "extern int apart; int third(void) { return apart; }", "fourth.c": "int apart;"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text + "\n")
    found = arrows(kit, [tmp_path / name for name in texts], tmp_path)
    assert found["third.c"] == {"fourth.c": {"apart"}}
    assert faults(found) == ["tsm_system.c -> upper.c: up", "tsm_system.c -> upper.c -> tsm_system.c"]
