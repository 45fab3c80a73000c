"""The renderer of hand gestures (numpy and OpenCV only), and clips, labels and targets made with it.

In: a label and a seed. Out: frames. Asked by data, tsm-gestures, and by name by test:// sources.
"""
