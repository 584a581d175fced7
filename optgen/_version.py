"""The version of optgen."""

__version__ = "0.1.0"
