"""The cloud half as a service: HTTP with binary bodies, dynamic batching, keys, limits, metrics."""
