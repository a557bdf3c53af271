import copy
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from popen.data import rle
from popen.data.grandf import ASKED, Caption, Grounding, grandf_row, grounded_answer, read_grandf
from popen.data.safe_io import DataError
from popen.data.schema import Sample, check_unique_ids, load_split

CONVERTER = Path(__file__).parents[2] / "data_tools" / "convert_grandf.py"
TEXT = "A dog beside the red car and a dog"


def box(left, size=10):
    mask_HW = np.zeros((40, 50), dtype=bool)
    mask_HW[:size, left : left + size] = True
    return mask_HW


def span(words, text=TEXT):
    start = text.index(words)
    return [start, start + len(words)]


def coded(left, size=10):
    return rle.encode(box(left, size))


def spans(text=f'"{TEXT} "', file="a.jpg"):
    """A human annotated record; places count from the caption without its quotes."""
    return {
        "file_name": file,
        "image_id": 1,
        "caption": text,
        "groundings": {
            "the red car": {"token_positives": span("the red car"), "rle_masks": [coded(0), coded(20)]},
            "A dog": {"token_positives": span("A dog"), "rle_masks": [coded(30)]},
            "a sky": None,
        },
    }


REFS = {
    "17": {
        "img_file_name": "a.jpg",
        "caption": TEXT,
        "refs": [
            {"sentence": "A Dog", "segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]], "bbox": [0, 0, 10, 10]},
            {"sentence": "red car", "segmentation": [[20, 0, 30, 0, 30, 10, 20, 10]], "bbox": [20, 0, 10, 10]},
            {"sentence": "a dog", "segmentation": [[30, 0, 40, 0, 40, 10, 30, 10]], "bbox": [30, 0, 10, 10]},
            {"sentence": "a do", "segmentation": [[30, 0, 40, 0, 40, 10, 30, 10]], "bbox": [30, 0, 10, 10]},
        ],
    }
}
FLICKR = {
    "images": [{"id": 5, "file_name": "a.jpg", "height": 40, "width": 50, "caption": TEXT}],
    "annotations": [
        {"id": 1, "image_id": 5, "tokens_positive": [span("the red car")], "sam_mask": coded(0)},
        {"id": 2, "image_id": 5, "tokens_positive": [span("the red car")], "sam_mask": coded(20)},
        {"id": 3, "image_id": 5, "tokens_positive": [span("A dog")], "sam_mask": coded(30)},
        {"id": 4, "image_id": 5, "tokens_positive": [span("A dog")], "sam_mask": coded(40), "ignore": True},
    ],
    "categories": [],
}
CAPTIONS = {
    "images": [{"id": "a"}],
    "annotations": [{"id": 0, "image_id": "a", "caption": TEXT, "labels": ["the red car", "a dog", "a dog"]}],
}
MASKS = {
    "images": [{"id": "a"}],
    "annotations": [
        {"id": n, "image_id": "a", "category_id": 1, "segmentation": coded(left)} for n, left in enumerate((0, 20, 30))
    ],
}


def change(data, *path, value=None):
    data = copy.deepcopy(data)
    *parents, last = path
    inner = data
    for key in parents:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return data


def read(folder, data, masks=None):
    (folder / "captions.json").write_text(data if isinstance(data, str) else json.dumps(data))
    (folder / "masks.json").write_text(json.dumps(masks))
    return read_grandf(folder / "captions.json", None if masks is None else folder / "masks.json")


def convert(folder, data, masks=None):
    (picture,), left_out = read(folder, data, masks)
    Image.new("RGB", (50, 40), "red").save(folder / "a.jpg")
    made = grandf_row(picture, folder, "grandf/train", 10**6)
    return Sample.from_row(made.row), left_out + made.left_out


def masks_of(question):
    return dict(zip(question.phrases, question.decoded_masks(40, 50), strict=True))


@pytest.mark.parametrize("form", ["spans", "flickr"])
def test_phrases_with_their_places(tmp_path, form):
    sample, left_out = convert(tmp_path, [spans()] if form == "spans" else FLICKR)
    (question,) = sample.questions
    assert (sample.image_id, sample.objects) == ("grandf/train/a", ("dog", "red car"))
    assert (question.id, question.kind) == ("grandf/train/a/0", "caption")
    assert question.question in ASKED
    assert question.answer == "A dog <seg> beside the red car <seg> and a dog"
    assert question.phrases == ("A dog", "the red car")
    found = masks_of(question)
    assert np.array_equal(found["A dog"], box(30))
    assert np.array_equal(found["the red car"], box(0) | box(20))
    assert left_out == {"phrases without a mask": 1}


def test_phrases_without_their_places(tmp_path):
    sample, left_out = convert(tmp_path, [REFS])
    (question,) = sample.questions
    assert question.answer == "A dog <seg> beside the red car <seg> and a dog <seg>"  # the second dog is the second
    assert question.phrases == ("A dog", "red car", "a dog")
    for mask_HW, left in zip(question.decoded_masks(40, 50), (0, 20, 30), strict=True):
        assert np.array_equal(mask_HW, box(left))
    assert left_out == {"phrases that are not in their caption": 1}  # "a do" is no word of "a dog"


def test_evaluation_splits_have_two_files(tmp_path):
    sample, left_out = convert(tmp_path, CAPTIONS, MASKS)
    (question,) = sample.questions
    assert question.answer == "A dog <seg> beside the red car <seg> and a dog <seg>"
    for mask_HW, left in zip(question.decoded_masks(40, 50), (20, 0, 30), strict=True):
        assert np.array_equal(mask_HW, box(left))
    assert not left_out


def test_phrases_inside_phrases():
    """By hand: of those that end together the inner one comes first; the same stretch has one target."""
    text = "the man in the red hat"
    places = [(0, 22), (0, 7), (11, 22), (0, 7)]
    caption = Caption(text, tuple(Grounding(*place, None) for place in places))
    answer, phrases, masks = grounded_answer(caption, [box(0), box(10), box(20), box(30)])
    assert answer == "the man <seg> in the red hat <seg> <seg>"
    assert phrases == ("the man", "the red hat", "the man in the red hat")
    for mask_HW, expected in zip(masks, (box(10) | box(30), box(20), box(0)), strict=True):
        assert np.array_equal(mask_HW, expected)


def test_blanks_at_the_ends_of_a_phrase(tmp_path):
    (start, end) = span(" red car ")
    sample, _ = convert(tmp_path, change([spans()], 0, "groundings", "A dog", "token_positives", value=[start, end]))
    assert sample.questions[0].answer == "A dog beside the red car <seg> <seg> and a dog"
    assert sample.questions[0].phrases == ("red car", "the red car")


def test_captions_of_one_picture_are_one_row(tmp_path):
    other = {**spans(), "caption": TEXT + " too"}
    sample, _ = convert(tmp_path, [spans(), other])
    assert [q.answer[-3:] for q in sample.questions] == ["dog", "too"]
    assert [q.id for q in sample.questions] == ["grandf/train/a/0", "grandf/train/a/1"]
    assert sample.questions[0].question != sample.questions[1].question


def test_two_people_may_say_the_same_of_a_flickr_picture(tmp_path):
    """Each of a picture's captions is an image of the file's own."""
    again = [{**annotation, "id": 10 + annotation["id"], "image_id": 6} for annotation in FLICKR["annotations"]]
    images = [*FLICKR["images"], {**FLICKR["images"][0], "id": 6}]
    sample, left_out = convert(tmp_path, {**FLICKR, "images": images, "annotations": [*FLICKR["annotations"], *again]})
    assert len(sample.questions) == 1 and left_out["captions listed twice"] == 1


def test_what_cannot_be_grounded_is_counted(tmp_path):
    data = change([spans()], 0, "groundings", "A dog", "rle_masks", value=[coded(0, 0)])
    sample, left_out = convert(tmp_path, data)
    assert sample.questions[0].answer == "A dog beside the red car <seg> and a dog"
    assert left_out == {"phrases without a mask": 2}
    data[0]["groundings"]["the red car"]["rle_masks"] = []
    sample, left_out = convert(tmp_path, data)
    assert sample.questions == ()
    assert left_out == {"phrases without a mask": 3, "captions without a grounded phrase": 1}


GROUNDED = ("groundings", "A dog")
FILES = {
    "number": ("3", None, "not GranD_f (TypeError"),
    "other records": ([{"a": 3}], None, "not GranD_f (TypeError"),
    "empty record": ([{}], None, "not GranD_f (TypeError"),
    "no caption": (change([spans()], 0, "caption"), None, "not GranD_f (KeyError: 'caption')"),
    "blank caption": (change([spans()], 0, "caption", value='" "'), None, "record 0: the caption must be text"),
    "mark": (change([spans()], 0, "caption", value="A <seg> dog"), None, "record 0: the caption must be text"),
    "no place": (
        change([spans()], 0, *GROUNDED, "token_positives", value=[3]),
        None,
        "record 0: 'A dog': expected [start, end]",
    ),
    "outside": (
        change([spans()], 0, *GROUNDED, "token_positives", value=[0, 99]),
        None,
        "record 0: 'A dog': [0, 99] is no phrase of a caption of 34 letters",
    ),
    "backwards": (change([spans()], 0, *GROUNDED, "token_positives", value=[5, 5]), None, "[5, 5] is no phrase"),
    "image twice": ({**FLICKR, "images": FLICKR["images"] * 2}, None, "image 5 is listed 2 times"),
    "record twice": (
        [spans(), {**spans(), "caption": TEXT + " too"}, spans()],
        None,
        "record 2: a.jpg is listed twice with the",
    ),
    "refs twice": ([REFS, REFS], None, "record 1: a.jpg is listed twice with the same caption; remove one"),
    "two captions": (
        {**CAPTIONS, "annotations": CAPTIONS["annotations"] * 2},
        MASKS,
        "image a: a.jpg is listed twice, also as image a; remove one caption",
    ),
    "another id": (
        {
            "images": [{"id": "a"}, {"id": 7, "file_name": "a.jpg"}],
            "annotations": [*CAPTIONS["annotations"], {**CAPTIONS["annotations"][0], "image_id": 7}],
        },
        {**MASKS, "annotations": [*MASKS["annotations"], *({**m, "image_id": 7} for m in MASKS["annotations"])]},
        "image 7: a.jpg is listed twice, also as image a; remove one caption",
    ),
    "strange image": (change(FLICKR, "annotations", 0, "image_id", value=6), None, "annotations of image 6, which"),
    "no masks": (CAPTIONS, None, "give the file of their masks too"),
    "masks beside": ([spans()], MASKS, "has its masks itself; leave out"),
    "fewer masks": (CAPTIONS, change(MASKS, "annotations", 0), "image a: 3 labels in its caption, 2 masks in"),
    "masks of another": (
        CAPTIONS,
        {**MASKS, "annotations": [*MASKS["annotations"], {"image_id": "b"}]},
        "annotations of image 'b', which has no caption",
    ),
    "caption of another": (change(CAPTIONS, "images", 0, "id", value="b"), MASKS, "image a: a caption without its"),
    "NaN": ('[{"a": NaN}]', None, "not a finite number"),
    "deep": ("[" * 100_000, None, "nested too deeply"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_contradict_themselves_are_named(tmp_path, name):
    data, masks, message = FILES[name]
    with pytest.raises(DataError, match=r"^[^\n]*\.json[^\n]*$") as error:
        read(tmp_path, data, masks)
    assert message in str(error.value)


LONG = {"size": [40, 50], "counts": [2001]}
ROWS = {
    "long RLE": (change([spans()], 0, *GROUNDED, "rle_masks", value=[LONG]), "a.jpg: 'A dog': segmentation: RLE"),
    "other size": (
        change([spans()], 0, *GROUNDED, "rle_masks", value=[rle.encode(np.ones((50, 40), dtype=bool))]),
        "a.jpg: 'A dog': segmentation: RLE of size [50, 40]",
    ),
    "missing": ([spans(file="b.jpg")], "b.jpg: no such file"),
    "way out": ([spans(file="/etc/a.jpg")], "must be relative"),
}


@pytest.mark.parametrize("name", ROWS)
def test_pictures_that_cannot_be_used_are_named(tmp_path, name):
    data, message = ROWS[name]
    with pytest.raises(DataError, match=r"^[^\n]*$") as error:
        convert(tmp_path, data)
    assert message in str(error.value)


def test_conversion(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("convert_grandf", CONVERTER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    read(tmp_path, CAPTIONS, MASKS)
    Image.new("RGB", (50, 40), "red").save(tmp_path / "a.jpg")
    command = [str(tmp_path / "captions.json"), str(tmp_path), str(tmp_path / "out"), "--name", "grandf"]
    assert module.main(command) == 1
    assert "give the file of their masks too" in capsys.readouterr().err
    assert module.main([*command, "--split", "val", "--masks", str(tmp_path / "masks.json")]) == 0
    assert capsys.readouterr().out == "val: 1 images, 1 questions (caption 1), 3 targets\n"
    check_unique_ids(load_split(tmp_path / "out", "val"))
    read(tmp_path, [REFS])
    assert module.main(command) == 0
    assert "  left out: 1 phrases that are not in their caption\n" in capsys.readouterr().out
    assert load_split(tmp_path / "out", "train")["image_id"][:] == ["grandf/train/a"]
