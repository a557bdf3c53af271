"""Whole mining runs: reproducible, resumable, and safe when the disk is full."""

import copy
import errno
import os
from dataclasses import replace

import datasets
import pytest
import torch

from popen.data.preference_schema import SEG_FEATURES, TEXT_FEATURES, TargetPreference
from popen.data.safe_io import DataError, StorageError
from popen.data.scene_questions import sample
from popen.data.schema import load_split, write_dataset
from popen.lvlm import mining
from popen.lvlm.mining import MiningArguments, load_mined, mine
from popen.preference.hallucination import mentions, name_pattern

SETTINGS = {"candidates": 2, "views": "embedding", "shard_rows": 1, "margin": 0.01}
# rectangles that change what even a model that learnt by heart sees
RECTANGLES = {"views": "rectangle", "min_area": 0.3, "max_area": 0.5, "sigma": 2.0, "margin": 0.001}


@pytest.fixture(scope="module")
def scenes():
    """Three scenes that nobody taught the model: each gives preferences of both kinds."""
    return [sample(seed) for seed in (2, 3, 4)]


@pytest.fixture(scope="module")
def source(taught, scenes, tmp_path_factory):
    """What `mine` takes first: a model, its processor, a split of three pictures, all its rows, the model's folder."""
    folder = tmp_path_factory.mktemp("source")
    model, processor = taught
    model.save_pretrained(folder / "model")
    rows = write_dataset(scenes, folder / "data", "train")
    return {
        "model": model,
        "processor": processor,
        "rows": rows,
        "selection": range(3),
        "model_name": folder / "model",
    }


def run(source, output, **settings):
    return mine(**source, output_dir=output, args=MiningArguments(**(SETTINGS | settings)))


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """An uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "mined"
    run(source, output)
    return output


def shards(output):
    return {p.relative_to(output): p.read_bytes() for p in sorted(output.glob("shards/*/*"))}


def assert_same_run(one, other):
    assert shards(one) == shards(other)
    for a, b in zip(load_mined(one), load_mined(other), strict=True):
        assert (a.to_list() == b.to_list()) if isinstance(a, datasets.Dataset) else a == b


def test_what_a_run_writes(source, whole, scenes):
    text, seg, report = load_mined(whole)
    assert text.features == TEXT_FEATURES and seg.features == SEG_FEATURES
    assert seg["id"][:] == [s.image_id for s in scenes] and seg["row"][:] == [0, 1, 2]
    assert set(text["row"][:]) == {0, 1, 2}
    assert not list(whole.glob("**/*.tmp")) and not (whole / ".cache").exists()
    assert report["rows"] == [0, 3] and report["settings"]["candidates"] == 2


def test_counts_add_up(whole, scenes):
    text, seg, report = load_mined(whole)
    questions = [q for s in scenes for q in s.questions]
    assert report["text"]["seen"] == len(questions) == sum(report["text"]["reasons"].values())
    assert report["text"]["kept"] == len(text) == len(questions) - report["text"]["reasons"].get("correct", 0)
    assert report["seg"]["seen"] == sum(len(q.masks) for q in questions) == sum(report["seg"]["reasons"].values())
    assert report["seg"]["kept"] == sum(len(row["targets"]) for row in seg) > 0


@pytest.mark.parametrize("views, views_seen", [("embedding", 0), ("rectangle", SETTINGS["candidates"])])
def test_the_vision_tower_sees_a_picture_once(source, tmp_path, views, views_seen):
    """For its answers, their reference and its masks together; a view is another picture."""
    seen, tower = [], source["model"].backbone.model.vision_tower
    hook = tower.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
    )
    try:
        report = run(source, tmp_path / "mined", views=views, shard_rows=2, batch_size=2)
    finally:
        hook.remove()
    assert report["text"]["kept"] > 0 and report["seg"]["seen"] > 0
    assert sum(seen) == 3 * (1 + views_seen)


def test_rows_read_back(source, whole):
    config = source["model"].config
    _, seg, _ = load_mined(whole)
    for fields in (target for row in seg for target in row["targets"]):
        found = TargetPreference.from_row(fields, config.scales)
        assert found.embeddings.shape == (3, config.scales, config.decoder_dim) and found.evidence.shape[0] == 3
        assert found.ious[found.superior] == max(found.ious) and found.ious[found.inferior] == min(found.ious)
        assert found.region(found.inferior) is not None
        assert (found.region(found.medium) is None) == (found.medium < 0)


@pytest.mark.parametrize("views", [{}, RECTANGLES], ids=["embedding", "rectangle"])
def test_rows_follow_from_the_seed(source, tmp_path, views):
    """The same seed gives the same bytes, another one other answers and other candidates."""
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        run(source, tmp_path / name, **views, seed=seed)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    (text, seg, report), (other_text, other_seg, _) = load_mined(tmp_path / "one"), load_mined(tmp_path / "other")
    assert report["seg"]["kept"] > 0
    assert text.to_list() != other_text.to_list() and seg.to_list() != other_seg.to_list()


@pytest.mark.parametrize("shard_rows", [1, 2, 256])
def test_fewer_pictures_may_give_segmentation_preferences(source, whole, tmp_path, shard_rows):
    """The first two, however the work is cut; text preferences come from all three."""
    run(source, tmp_path / "few", seg_pictures=2, shard_rows=shard_rows)
    text, seg, report = load_mined(tmp_path / "few")
    all_text, all_seg, _ = load_mined(whole)
    assert text["id"][:] == all_text["id"][:] and set(text["row"][:]) == {0, 1, 2}
    assert seg["id"][:] == all_seg["id"][:2] and report["seg"]["seen"] < sum(report["text"]["reasons"].values())


def test_another_corrector_may_be_asked(source, tmp_path, chat_server):
    """One that talks instead of correcting: everything is refused, counted, and not asked for again."""
    chat_server.replies = [(200, "I would rather not say.")]
    endpoint = {
        "streams": "text", "corrector": "openai", "corrector_model": "small", "corrector_pictures": False,
        "base_url": f"http://127.0.0.1:{chat_server.server_port}/v1",
    }  # fmt: skip
    report = run(source, tmp_path / "mined", **endpoint)
    assert report["text"]["kept"] == 0 and report["text"]["reasons"] == {"refused_seg": report["text"]["seen"]}
    assert report["corrector"]["asked"] == len(chat_server.seen) > 0
    assert len(load_mined(tmp_path / "mined")[0]) == 0
    run(source, tmp_path / "mined", **endpoint, corrector_workers=1, corrector_timeout=300.0)  # only more patient
    assert report["corrector"]["asked"] == len(chat_server.seen)


def test_a_corrector_without_a_name_is_refused():
    with pytest.raises(DataError, match="corrector_model is not set"):
        MiningArguments(corrector="openai")


def test_no_picture_for_segmentation_preferences_is_refused():
    with pytest.raises(DataError, match="seg_pictures = 0"):
        MiningArguments(seg_pictures=0)


def test_greedy_answers_need_no_seed(source, tmp_path):
    for seed in (0, 1):
        run(source, tmp_path / str(seed), streams="text", temperature=0.0, seed=seed)
    one, other = (load_mined(tmp_path / str(seed))[0] for seed in (0, 1))
    assert one.to_list() == other.to_list() != []


def test_pairs_say_whether_the_answer_hallucinates(source, whole):
    """By the names of the things in the whole data set, each row against its own picture."""
    objects = source["rows"]["objects"][:]
    vocabulary = name_pattern({name for names in objects for name in names})
    rows = load_mined(whole)[0].to_list()
    wanted = [mentions(row["rejected"], objects[row["row"]], vocabulary).hallucinated > 0 for row in rows]
    assert rows and [row["hallucinated"] for row in rows] == wanted


def test_shards_do_not_change_the_rows(source, whole, tmp_path):
    """Up to rounding, as a batch of three pictures is summed in another order than one."""
    run(source, tmp_path / "one", shard_rows=256)
    for one, other in zip(load_mined(whole)[:2], load_mined(tmp_path / "one")[:2], strict=True):
        assert one["id"][:] == other["id"][:]
    ranked = [[[t["superior"] for t in row["targets"]] for row in load_mined(f)[1]] for f in (whole, tmp_path / "one")]
    assert ranked[0] == ranked[1]


def test_an_interrupted_run_goes_on(source, whole, tmp_path, monkeypatch):
    """Ctrl-C in the second shard: the first is kept as it is and not done again."""
    output, work, done = tmp_path / "mined", mining._mine_shard, []

    def interrupted(model, processor, samples, first_row, *rest):
        if first_row == 1 and done == [0]:
            raise KeyboardInterrupt
        done.append(first_row)
        return work(model, processor, samples, first_row, *rest)

    monkeypatch.setattr(mining, "_mine_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(source, output)
    assert [p.name for p in (output / "shards").iterdir()] == ["00000000"]
    with pytest.raises(DataError, match=r"no mining\.json; mining was not finished there"):
        load_mined(output)
    (output / "shards" / "00000001.tmp").mkdir()  # what a killed process leaves
    monkeypatch.setattr(mining, "_mine_shard", lambda *a: done.append(a[3]) or work(*a))
    run(source, output)
    assert done == [0, 1, 2]
    assert_same_run(output, whole)


def test_a_finished_run_is_not_done_again(source, whole, tmp_path, monkeypatch):
    before = shards(whole)
    monkeypatch.setattr(mining, "_mine_shard", lambda *_: pytest.fail("mined again"))
    run(source, whole)
    assert shards(whole) == before


def test_a_folder_of_another_setting_is_refused(source, whole):
    before = shards(whole)
    with pytest.raises(DataError, match="was mined with another settings"):
        run(source, whole, seed=9)
    with pytest.raises(DataError, match="was mined with another rows"):
        run(source | {"selection": range(2)}, whole)
    assert shards(whole) == before


def test_a_folder_of_another_model_or_data_is_refused(source, whole, scenes, tmp_path):
    other = copy.deepcopy(source["model"])
    other.codebook.fusion.data += 1
    other.save_pretrained(tmp_path / "model")
    with pytest.raises(DataError, match="was mined with another model"):
        run(source | {"model_name": tmp_path / "model"}, whole)
    with pytest.raises(DataError, match="was mined with another data"):
        run(source | {"rows": write_dataset(scenes[1:], tmp_path / "data", "train")}, whole)


def test_the_data_is_known_by_its_content(source, whole):
    """Loaded again from disk it is the same data."""
    folder = source["model_name"].parent / "data"
    run(source | {"rows": load_split(folder, "train")}, whole)


def test_a_negative_temperature_is_refused():
    with pytest.raises(DataError, match=r"temperature = -0.5: give 0 \(greedy\) or more"):
        MiningArguments(temperature=-0.5)


def test_no_candidates_are_refused():
    with pytest.raises(DataError, match="candidates = 0: mining needs K >= 1"):
        MiningArguments(candidates=0)


@pytest.mark.parametrize("stream, other", [("text", "seg"), ("seg", "text")])
def test_one_stream(source, whole, tmp_path, stream, other):
    report = run(source, tmp_path / "mined", streams=stream)
    mined, all_of_it = (
        dict(zip(("text", "seg"), load_mined(f)[:2], strict=True)) for f in (tmp_path / "mined", whole)
    )
    assert mined[stream].to_list() == all_of_it[stream].to_list()
    assert len(mined[other]) == 0 and report[other] == {"seen": 0, "kept": 0, "reasons": {}}


def test_a_shard_without_preferences(source, samples, scenes, tmp_path):
    """The first scene was taught: all its answers are right, its shard holds no text row."""
    rows = write_dataset([samples[0], scenes[0]], tmp_path / "data", "train")
    run(source | {"rows": rows, "selection": range(2)}, tmp_path / "mined", temperature=0.0)
    text, seg, report = load_mined(tmp_path / "mined")
    assert set(text["row"][:]) == {1} and seg["row"][:] == [0, 1]
    assert report["text"]["reasons"]["correct"] >= len(samples[0].questions)


def test_a_picture_without_questions_is_passed_over(source, scenes, tmp_path):
    rows = write_dataset([scenes[0], replace(scenes[1], questions=())], tmp_path / "data", "train")
    report = run(source | {"rows": rows, "selection": range(2)}, tmp_path / "mined", shard_rows=2)
    assert report["text"]["seen"] == len(scenes[0].questions)


def test_nothing_to_mine_is_said(source, tmp_path):
    """`first_row` behind the end, or `max_rows: 0`."""
    with pytest.raises(DataError, match="rows"):
        run(source | {"selection": range(3, 3)}, tmp_path / "mined")


def test_an_uncalibrated_model_mines_rectangles_only(source, tmp_path, monkeypatch):
    monkeypatch.setattr(source["model"].config, "embedding_std", None)
    one = source | {"selection": range(1)}
    with pytest.raises(DataError, match="embedding_std is not set"):
        run(one, tmp_path / "embedding")
    assert run(one, tmp_path / "rectangle", views="rectangle")["seg"]["seen"] > 0


@pytest.mark.parametrize("where, fails_at", [("to_parquet", 3), ("to_parquet", 4), ("rename", 2)])
def test_a_full_disk_leaves_finished_shards(source, whole, tmp_path, monkeypatch, where, fails_at):
    """Every shard is two parquet files and one rename; the disk is full in the second shard."""
    output, calls = tmp_path / "mined", []
    owner = datasets.Dataset if where == "to_parquet" else os
    real = getattr(owner, where)

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, where, full)
        with pytest.raises(StorageError, match=r"00000001: .*No space left on device.*run again to go on") as caught:
            run(source, output)
    assert caught.value.errno == errno.ENOSPC
    assert [p.name for p in (output / "shards").iterdir()] == ["00000000"]
    kept = datasets.Dataset.from_parquet(
        str(output / "shards" / "00000000" / "seg.parquet"), cache_dir=str(tmp_path), features=SEG_FEATURES
    )
    assert kept["id"][:] == load_mined(whole)[1]["id"][:1]
    run(source, output)
    assert_same_run(output, whole)


def test_a_full_disk_while_merging(source, whole, tmp_path, monkeypatch):
    output = tmp_path / "mined"

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(datasets.Dataset, "save_to_disk", full)
        with pytest.raises(StorageError, match=r"text: .*finished shards are intact"):
            run(source, output)
    assert shards(output) == shards(whole)
    run(source, output)
    assert_same_run(output, whole)


def test_a_folder_that_cannot_be_made(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="nothing was written"):
        run(source, tmp_path / "file" / "mined")


def test_out_of_memory_names_the_batch_and_keeps_the_shards(source, tmp_path, monkeypatch):
    work, calls = mining._mine_shard, []

    def full(*args):
        calls.append(args)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return work(*args)

    monkeypatch.setattr(mining, "_mine_shard", full)
    with pytest.raises(DataError, match=r"64 questions at a time \(CUDA out of memory\); try batch_size: 32, .*kept"):
        run(source, tmp_path / "mined")
    assert len(list((tmp_path / "mined" / "shards").iterdir())) == 1
