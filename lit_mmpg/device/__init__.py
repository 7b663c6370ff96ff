"""The device half: the lightweight model with its dynamic layers, anchors, evaluation and stage 1."""
