"""recipes/sft.py on several data sets."""

import importlib.util
import inspect
import json
from pathlib import Path

import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler
from trl import TrlParser

from popen.data.mixing import load_mixture, mixture_order
from popen.data.safe_io import DataError
from popen.data.scene_questions import sample
from popen.data.schema import write_dataset

SCRIPT = Path(__file__).parent.parent.parent / "recipes" / "sft.py"


@pytest.fixture
def sft(monkeypatch):
    """The recipe, with the trainers it built in `trainers`."""
    spec = importlib.util.spec_from_file_location("recipe_sft", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.use_all_cores = lambda: None  # the other tests go on after this one
    module.trainers = []

    class Watched(module.SegmentationSFTTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            module.trainers.append(self)

    module.SegmentationSFTTrainer = Watched
    return module


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_the_order(ranks):
    """Each step's batches of all ranks together are the batch that one process would take."""
    order = mixture_order((6, 2), (1, 1), seed=0).tolist()
    batches = BatchSampler(order, 8 // ranks, drop_last=True)
    shares = [list(BatchSamplerShard(batches, ranks, rank)) for rank in range(ranks)]
    assert [[row for batch in step for row in batch] for step in zip(*shares, strict=True)] == [order[:8]]


def test_a_mixture_is_trained_on(sft, tiny, tmp_path):
    for part in tiny:
        part.save_pretrained(tmp_path / "model")
    for name, first, count in (("a", 0, 4), ("b", 100, 2)):
        write_dataset((sample(first + i) for i in range(count)), tmp_path / name, "train")
    folders = [str(tmp_path / name) for name in "ab"]

    def run(*rates):
        shown = f"""--model_name_or_path {tmp_path / "model"} --attn_implementation eager --dataset {" ".join(folders)}
            --output_dir {tmp_path / "run"} --seed 3 --max_steps 2 --per_device_train_batch_size 2 --use_cpu true
            --report_to none --disable_tqdm true --logging_steps 1 --save_strategy no --rates"""
        parser = TrlParser(tuple(p.annotation for p in inspect.signature(sft.main).parameters.values()))
        sft.main(*parser.parse_args_and_config([*shown.split(), *rates]))

    run("1", "3")
    ids = sft.trainers[0].train_dataset["image_id"][:]
    assert len(ids) == 4 + 12
    assert [ids.count("scene-100"), ids.count("scene-101")] == [6, 6]
    assert ids == load_mixture(folders, "train", [1, 3], seed=3)["image_id"][:]
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2]
    with pytest.raises(DataError, match=r"rates: \[1\.0\] for 2 data sets"):
        run("1")
