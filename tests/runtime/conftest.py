from tests.export.conftest import made

__all__ = ["made"]
