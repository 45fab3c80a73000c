"""The renderer of hand gestures, and clips, labels and targets made with it."""
