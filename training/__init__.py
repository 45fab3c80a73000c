"""Training an online network, measuring it, and recording clips for it."""
