"""Engines that need torch: eager, torch.compile, AOTInductor, Torch-TensorRT. Loaded by name from the engine table."""
