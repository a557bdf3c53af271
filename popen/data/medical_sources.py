"""The labelled cases of a data set in whichever layout it lies, with the names of their regions."""

from collections.abc import Sequence
from pathlib import Path

from popen.data.medical_case import CaseReference
from popen.data.medical_folders import further_annotators, read_image_folder
from popen.data.medical_layout import DATASET_JSON
from popen.data.nnunet_raw import read_dataset_json, read_msd, read_nnunet_raw


def read_labelled_cases(
    folder: str | Path, regions: Sequence[str], activation: str, patient: str | None, annotators: bool
) -> tuple[Sequence[CaseReference], tuple[str, ...]]:
    """The cases of a folder with images/ and masks/, or of the training part of one with a dataset.json.

    Args:
        regions: names of the masks of pictures; a dataset.json has its own.
        activation: sigmoid or softmax. patient: as of `read_image_folder`.
        annotators: read what further annotators drew too.
    Raises:
        DataError: what the reader of the layout refuses.
    """
    if (Path(folder) / DATASET_JSON).is_file():
        description = read_dataset_json(folder, activation)
        reader = read_msd if description.is_decathlon else read_nnunet_raw
        return reader(folder, "Tr", activation, patient), description.regions.names
    further = further_annotators(folder) if annotators else ()
    return read_image_folder(folder, patient=patient, further=further), tuple(regions)
