"""Data: records, readers of public layouts, the embedded clips, dealing to devices, and batches."""
