"""Lets `import popen` register the model family with transformers' Auto classes and stay quick.

The family needs torch and transformers, which take seconds to import. So it waits until somebody asks transformers
for one of its `Auto…` classes; only then can it matter.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

WATCHED = "transformers"


class _AfterLoading(Loader):
    """Loads transformers as its own loader does, then watches it."""

    def __init__(self, own: Loader):
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.own.exec_module(module)
        _watch(sys.modules[WATCHED])


class _OnImport(MetaPathFinder):
    """Steps in for the first import of transformers only."""

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        if fullname != WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _AfterLoading(spec.loader)
        return spec


def _watch(module: ModuleType) -> None:
    """From now on the first `Auto…` that is asked of transformers brings the model family with it.

    The watch is on the class of its lazy module: transformers makes itself a second module when it loads processors.
    """
    lazy = type(module)
    own = lazy.__getattr__

    def __getattr__(self, name: str):
        value = own(self, name)
        if self.__name__ == WATCHED and name.startswith("Auto"):
            import popen.lvlm  # noqa: F401 (importing it registers the family)
        return value

    lazy.__getattr__ = __getattr__


def register_when_needed() -> None:
    """Called once by `import popen`, in whatever order popen and transformers are imported."""
    if WATCHED not in sys.modules:
        sys.meta_path.insert(0, _OnImport())
    elif any(name.startswith("Auto") for name in vars(sys.modules[WATCHED])):
        import popen.lvlm  # noqa: F401 (somebody holds an Auto class already)
    else:
        _watch(sys.modules[WATCHED])
