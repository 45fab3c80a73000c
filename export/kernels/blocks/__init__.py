"""One file for each kind of operation: `build(op, shapes, target) -> Kernel`."""
