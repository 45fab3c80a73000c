"""The demo: a source and a model in, an overlay, events and a recording out."""
