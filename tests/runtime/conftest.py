from tests.export.conftest import encoder_folder, made

__all__ = ["encoder_folder", "made"]
