"""The folder that is handed over.

In: a job whose library is proven. Out: the bundle (golden frames, README, Android package, manifest), whole or not at all, and the
report of it. Asked by the pipeline, keep and the command line.
"""
