"""From kernels to a library for the target.

In: the chosen kernels (kernels.calls.Chosen), a manifest, a target. Out: a LibraryReport with the path of the library, its memory plan and
its audit. Asked by proof, tuning and the pipeline.
"""
