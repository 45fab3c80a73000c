"""One file for each kind of operation.

In: an operation of graph.ops, the shapes, a target, choices. Out: `build(...) -> Kernel`, or None where the kind has no kernel for it.
Asked by `kernels.build` alone.
"""
