"""A device without torch: the bundle, the engines that run it and what checks them."""
