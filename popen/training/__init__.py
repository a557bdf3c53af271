"""Trainers on top of transformers.Trainer."""

from popen.training.sft import SegmentationSFTTrainer, SFTArguments

__all__ = ["SFTArguments", "SegmentationSFTTrainer"]
