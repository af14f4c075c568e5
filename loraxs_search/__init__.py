"""Find, keep and hand out tiny adapters."""

__version__ = "0.1.0"
