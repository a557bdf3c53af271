"""popen fine-tunes segmentation models with preferences."""

from typing import TYPE_CHECKING

from popen.hub.auto_classes import register_when_needed

__version__ = "0.1.0"
__all__ = ["PopenConfig", "PopenForReasoningSegmentation", "PopenProcessor", "__version__"]

if TYPE_CHECKING:
    from popen.lvlm import PopenConfig, PopenForReasoningSegmentation, PopenProcessor


def __getattr__(name: str):
    """Loads the model family on first use, so that `import popen` and the command line stay quick."""
    if name in __all__:
        from popen import lvlm

        return getattr(lvlm, name)
    raise AttributeError(f"module 'popen' has no attribute {name!r}")


register_when_needed()
