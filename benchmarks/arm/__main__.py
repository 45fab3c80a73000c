"""Count the ARM instructions of a bundle's step, kernel by kernel.

    python -m tsm_edge.benchmarks.arm dist/jetson-nano
    python -m tsm_edge.benchmarks.arm dist/jetson-nano --plot roofline.png --json
"""
from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from tsm_edge import cli
from tsm_edge.errors import InputError

from .count import count, estimate_cycles, open_arm_bundle


def parser():
    p = argparse.ArgumentParser(prog="python -m tsm_edge.benchmarks.arm", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bundle", metavar="BUNDLE", help="a bundle with a library for AArch64 Linux")
    p.add_argument("--cpu", metavar="NAME", help="QEMU's and llvm-mca's CPU (default: the bundle's target)")
    p.add_argument("--steps", type=int, default=2, metavar="N", help="steps to count (default: 2)")
    p.add_argument("--plot", metavar="PNG|SVG", help="write the kernels against the roofline")
    p.add_argument("--bytes-per-cycle", type=float, default=4.0, metavar="X",
                   help="memory roof of the picture, bytes a cycle of one core (default: 4, assumed)")
    p.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    return p


def _main(argv):
    args = parser().parse_args(argv)
    cli.check_ranges(args, {"steps": (1, None)})
    if not 0 < args.bytes_per_cycle < float("inf"):
        raise InputError("--bytes-per-cycle cannot be used", found=args.bytes_per_cycle, expected="a number above 0",
                         do="for example --bytes-per-cycle 4")
    if args.plot:
        _check_plot(Path(args.plot))
    bundle = open_arm_bundle(args.bundle)
    target = bundle.manifest["target"]
    cpu, emulated = args.cpu or target["cpu"], args.cpu or target.get("emulator_cpu") or target["cpu"]
    cli.echo({"bundle": args.bundle, "cpu": cpu, "steps": args.steps})
    caches = {"l1": f"{target['l1_bytes']}:2" if target["l1_bytes"] == 32768 else f"{target['l1_bytes']}:4",
              "l2": f"{target['l2_bytes']}:16"}
    counts = count(bundle.file("libtsm_model.so"), cpu=emulated, steps=args.steps, **caches)
    print("estimating cycles ...", file=sys.stderr)
    result = summary(counts, bundle.manifest, cpu, caches)
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        _print(result)
    if args.plot:
        plot(result, args.plot, args.bytes_per_cycle)
    cli.verdict(f"PASSED {result['instructions_per_step'] / 1e6:.2f} M instructions a step", args.json)
    return 0


def summary(counts, manifest, cpu, caches):
    """Figures of a step as plain values; `instructions_per_step` is exact, `cycles_estimate` an estimate (see `count`)."""
    kinds, macs = counts.by_class(), sum(c.macs for c in counts.calls)
    l1, l1_misses, _, l2_misses = counts.cache()
    kernels = []
    for number, call in enumerate(counts.calls, 1):
        blocks = counts.segment(number)
        mine = counts.by_class(blocks)
        instructions = sum(mine[k] for k in mine if k != "simd_macs")
        kernels.append({"name": call.name, "kind": call.kind, "macs": call.macs, "bytes": call.bytes, "instructions": instructions,
                        "fma_share": mine["fma"] / instructions if instructions else 0.0, "l2_misses": counts.cache(number)[3],
                        "cycles_estimate": estimate_cycles(blocks, cpu, counts.steps)})
    known = [k["cycles_estimate"] for k in kernels]
    about, peers = recorded_peers(cpu, manifest["precision"], macs)
    return {"model": manifest["name"], "precision": manifest["precision"], "target": manifest["target"]["name"], "cpu": cpu,
            "caches": caches, "steps": counts.steps, "instructions_per_step": counts.instructions,
            "instructions_per_mac": counts.instructions / macs, "macs": macs, "simd_fma_share": kinds["fma"] / counts.instructions,
            "by_class": kinds, "l1_accesses": l1, "l1_misses": l1_misses, "l2_misses": l2_misses,
            "cycles_estimate": None if None in known else sum(known), "kernels": kernels,
            "peers_about": about, "peers": peers}


def _check_plot(path):
    """Refuse a picture that could not be written, before anything is counted."""
    if path.suffix.lower() not in (".png", ".svg"):
        raise InputError("--plot cannot be used", found=str(path), expected="a file ending in .png or .svg",
                         do="for example --plot roofline.png")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError("--plot cannot be used", found=f"{path} cannot be written", expected="a file in a folder that can be written",
                         do="name another file")


def recorded_peers(cpu, precision, macs):
    """(how they were counted, figures of other engines for a network of as many multiply-accumulates on this CPU, or [])."""
    recorded = json.loads((Path(__file__).parent / "peers.json").read_text(encoding="utf-8"))
    return recorded["about"], next((c["peers"] for c in recorded["counts"] if (c["cpu"], c["precision"]) == (cpu, precision)
                                    and abs(c["macs"] / macs - 1) < 0.01), [])


def plot(result, path, bytes_per_cycle):
    """Kernels against the roofline: multiply-accumulates a cycle (estimate) over multiply-accumulates a byte."""
    try:
        import matplotlib
    except ImportError as error:
        from tsm_edge.errors import MissingComponentError

        raise MissingComponentError("matplotlib is not installed", found=str(error), expected="matplotlib",
                                    do="pip install 'tsm-edge[bench]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [k for k in result["kernels"] if k["cycles_estimate"] and k["macs"]]
    if not rows:
        raise InputError("the roofline needs a cycle estimate", found="no llvm-mca", expected="llvm-mca on PATH",
                         do="apt-get install llvm-19")
    peak = 4 if result["precision"] == "fp32" else 8  # one 128-bit multiply-add a cycle
    figure, axes = plt.subplots(figsize=(8, 5), dpi=120)
    colours = {kind: f"C{i}" for i, kind in enumerate(dict.fromkeys(k["kind"] for k in rows))}
    for kind, colour in colours.items():
        some = [k for k in rows if k["kind"] == kind]
        axes.scatter([k["macs"] / k["bytes"] for k in some], [k["macs"] / k["cycles_estimate"] for k in some],
                     s=[12 + 4e-5 * k["macs"] for k in some], color=colour, alpha=0.7, label=kind.replace("_", " "))
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = min(0.1, *(k["macs"] / k["bytes"] for k in rows)), 2 * max(k["macs"] / k["bytes"] for k in rows)
    axes.set_xlim(low, high)
    ridge = peak / bytes_per_cycle
    axes.plot([low, ridge, high], [low * bytes_per_cycle, peak, peak], color="black", lw=1)
    axes.text(high, peak * 1.02, f"one {peak}-lane multiply-add a cycle", fontsize=8, ha="right", va="bottom")
    axes.text(low * 1.1, peak / 38, f"memory at {bytes_per_cycle:g} bytes a cycle (assumed)", fontsize=8)
    axes.set_ylim(peak / 40, peak * 1.4)
    axes.set_yticks([peak / 16, peak / 8, peak / 4, peak / 2, peak], [f"{peak / d:g}" for d in (16, 8, 4, 2, 1)])
    axes.minorticks_off()
    axes.set_xlabel("multiply-accumulates for each byte of weights and activations")
    axes.set_ylabel("multiply-accumulates a cycle (llvm-mca estimate)")
    axes.set_title(f"{result['model']} on {result['cpu']}: kernels of one step (area: work)", fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _print(result):
    print(f"{result['model']} {result['precision']} for {result['target']}, {result['cpu']}: one step, mean of {result['steps']}")
    cycles = f"{result['cycles_estimate'] / 1e6:.1f}" if result["cycles_estimate"] else "-"
    table = [("", "M instr.", "per MAC", "FMA", "L2 misses M", "M cycles (estimate)"),
             ("tsm-edge", f"{result['instructions_per_step'] / 1e6:.2f}", f"{result['instructions_per_mac']:.3f}",
              f"{result['simd_fma_share']:.1%}", f"{result['l2_misses'] / 1e6:.3f}", cycles)]
    for peer in result["peers"]:
        cells = [f"{peer[k] / 1e6:.{d}f}" if peer[k] else "-" for k, d in (("l2_misses", 2), ("cycles", 0))]
        table.append((peer["name"], f"{peer['instructions'] / 1e6:.1f}", f"{peer['instructions'] / result['macs']:.3f}", "", *cells))
    print("\n".join(cli.columns(table)))
    if result["peers"]:
        print(f"(other engines: the same network, recorded figures. {result['peers_about']})")
    classes = {kind: value for kind, value in result["by_class"].items() if value >= 5e3 and kind != "simd_macs"}
    print("\n" + ", ".join(f"{kind} {value / 1e6:.2f} M" for kind, value in classes.items()))
    table = [("kernel", "kind", "M instr.", "FMA", "L2 misses", "cycles/MAC x4")]
    for k in sorted(result["kernels"], key=lambda k: -k["instructions"]):
        per = f"{4 * k['cycles_estimate'] / k['macs']:.2f}" if k["cycles_estimate"] and k["macs"] else "-"
        table.append((k["name"][:42], k["kind"], f"{k['instructions'] / 1e6:.3f}", f"{k['fma_share']:.1%}", f"{k['l2_misses']:.0f}", per))
    print("", *cli.columns(table), "", sep="\n")


def main(argv=None):
    cli.run(_main, argv)


if __name__ == "__main__":
    main()
