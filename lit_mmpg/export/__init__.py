"""From a checkpoint to the bundle that a device runs without torch."""
