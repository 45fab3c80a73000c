"""Clips for training: where they lie, how frames are chosen, changed and batched."""
