"""One import name: what app and plugin authors use."""

from pathlib import Path

__path__ = [str(Path(__file__).parent)]
