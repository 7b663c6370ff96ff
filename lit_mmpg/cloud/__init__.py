"""The cloud half: reasoner, adaptor, their exchange with devices, and stage 2."""
