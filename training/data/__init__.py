"""Clips for training: where they lie (listing), how frames are chosen and changed.

In: a folder, a list or the renderer. Out: data sets of (frames, label). Asked by train and evaluate.
"""
