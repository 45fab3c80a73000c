"""Proof that what is written computes what the trained network computes, frame by frame, logits and caches."""
