"""Trainers on top of transformers.Trainer."""

from popen.training.alignment import AlignmentTrainer
from popen.training.sft import SegmentationSFTTrainer, SFTArguments

__all__ = ["AlignmentTrainer", "SFTArguments", "SegmentationSFTTrainer"]
