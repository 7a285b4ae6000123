"""What can go wrong when models are fused."""


class FusionError(ValueError):
    """Models cannot be fused as asked. The message says whose fault it was and what to do."""


class CaptureError(FusionError):
    """A model cannot be taken apart into blocks."""
