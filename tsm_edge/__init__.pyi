from .models import create_model as create_model
from .runtimes import load as load

__version__: str
