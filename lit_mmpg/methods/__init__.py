"""Methods compared on equal terms."""
