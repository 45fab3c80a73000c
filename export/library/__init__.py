"""From kernels to a library for the target: memory, plan, objects, compiler, linking, audit."""
