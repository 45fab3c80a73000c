"""Kernels for everything that has none of ours: TVM's own legalisation, scheduled plainly.

In: an operation. Out: Kernels, one for each loop nest. Asked by kernels.calls.
"""
