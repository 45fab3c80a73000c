"""Proof that what is written computes what the trained network computes, frame by frame, logits and caches.

In: networks, files or libraries, and frames. Out: Traces (what each gave) and Checks (how far they differ, against what is allowed).
Asked by bundle and the pipeline.
"""
