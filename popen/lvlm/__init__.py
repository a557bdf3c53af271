"""The popen model family; importing it registers the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from popen.lvlm.configuration_popen import PopenConfig
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.processing_popen import PopenProcessor

AutoConfig.register(PopenConfig.model_type, PopenConfig)
AutoModel.register(PopenConfig, PopenForReasoningSegmentation)
AutoModelForImageTextToText.register(PopenConfig, PopenForReasoningSegmentation)
AutoModelForCausalLM.register(PopenConfig, PopenForReasoningSegmentation)
AutoProcessor.register(PopenConfig, PopenProcessor)

__all__ = ["PopenConfig", "PopenForReasoningSegmentation", "PopenProcessor"]
