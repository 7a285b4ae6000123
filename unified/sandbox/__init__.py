"""The operating-system ring around processes that read or run what others handed in. Free of torch."""

from unified.sandbox.folders import reading_confinement
from unified.sandbox.records import Confinement, Mechanism, Mode
from unified.sandbox.ring import available, check, confine, describe

__all__ = ["Confinement", "Mechanism", "Mode", "available", "check", "confine", "describe", "reading_confinement"]
