"""Does a bigger teacher make a fine-tuned small network better: by how much, how surely, and why.

Names are imported when they are first used: `import tlkd` costs nothing, and torch comes only with what needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlkd import regions
    from tlkd.api import Results, load_study, open_results, run_study
    from tlkd.attribution import deep_shap
    from tlkd.errors import BadInput, RunFailed
    from tlkd.losses import distillation_loss
    from tlkd.specs import Study

__version__ = "0.1.0"
__all__ = ["BadInput", "Results", "RunFailed", "Study", "deep_shap", "distillation_loss", "load_study", "open_results",
           "regions", "run_study"]

_HOMES = {"BadInput": "errors", "Results": "api", "RunFailed": "errors", "Study": "specs", "deep_shap": "attribution",
          "distillation_loss": "losses", "load_study": "api", "open_results": "api", "run_study": "api"}


def __getattr__(name: str) -> Any:
    if name == "regions":
        return import_module("tlkd.regions")
    if name not in _HOMES:
        raise AttributeError(f"module 'tlkd' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"tlkd.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted(["__version__", *__all__])
