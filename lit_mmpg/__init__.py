"""lit-mmpg: adapt small multi-modal models on devices without backpropagation, by cloud-device collaboration."""

__version__ = "0.1.0.dev0"
