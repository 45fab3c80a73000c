"""Figures of a trained network: accuracy by clips and as a stream, confusion, where it looks."""
