"""The families of vision-language backbones that popen builds on."""

from popen.data.safe_io import DataError
from popen.lvlm.families.family import Family, SeenPictures
from popen.lvlm.families.internvl import InternVL
from popen.lvlm.families.llava_next import LlavaNext
from popen.lvlm.families.pixellm import PixelLM
from popen.lvlm.families.qwen_vl import Qwen3VL, Qwen25VL
from popen.lvlm.families.smolvlm import SmolVLM

FAMILIES: dict[str, Family] = {
    "internvl": InternVL(),
    "llava": Family(),
    "llava_next": LlavaNext(),
    "qwen2_5_vl": Qwen25VL(),
    "qwen3_vl": Qwen3VL(),
    "smolvlm": SmolVLM(),
}
PIXELLM = "pixellm"  # no `model_type` of transformers: what `PopenConfig.pixellm_compat` asks for instead of LLaVA
RELEASED_PIXELLM = "PixelLMForCausalLM"  # what a released checkpoint calls its architecture


def family_of(model_type: str) -> Family:
    """The family of a backbone's `model_type`, or PixelLM's own.

    Raises:
        DataError: popen does not know it; names those it knows.
    """
    if model_type == PIXELLM:
        return PixelLM()
    if model_type not in FAMILIES:
        raise DataError(
            f"backbone {model_type!r} is none that popen knows ({', '.join(FAMILIES)}); "
            "docs/models.md says how to add one"
        )
    return FAMILIES[model_type]


__all__ = ["FAMILIES", "PIXELLM", "RELEASED_PIXELLM", "Family", "SeenPictures", "family_of"]
