"""`runner.testing`: what is in `plugins/testing/`, under the name that tests import."""

from .plugins.testing import *
from .plugins.testing import __all__ as __all__
