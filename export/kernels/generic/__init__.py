"""Kernels for everything that has none of ours: TVM's own legalisation, scheduled plainly."""
