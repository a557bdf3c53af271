"""A corrector behind a server on loopback that speaks the protocol: replies, retries, cache, refusals."""

import base64
import io

import pytest
from PIL import Image

from popen.data.safe_io import DataError
from popen.data.scene_questions import sample
from popen.preference.correcting import PHRASES, REFUSED_SEG, REFUSED_WORDS, Correction, minimal_correction
from popen.preference.endpoint import Endpoint, EndpointCorrector


def corrector(chat_server, cache, **options):
    url = f"http://127.0.0.1:{chat_server.server_port}/v1"
    return EndpointCorrector(Endpoint(url, "small", **({"retries": 2, "workers": 1} | options)), cache)


@pytest.fixture
def asked():
    scene = sample(0)
    return [(scene, scene.questions[0], "It is the red ball <seg>.", ("red ball",))]


def test_a_reply_becomes_a_correction_and_is_never_asked_for_again(chat_server, tmp_path, asked, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    chat_server.replies = [(200, "It is the  blue cone <seg>.\n")]
    correct = corrector(chat_server, tmp_path)
    expected = [Correction("It is the blue cone <seg>.", PHRASES)]
    assert correct(asked) == expected and correct(asked) == expected
    assert corrector(chat_server, tmp_path)(asked) == expected  # another run, the same cache
    assert len(chat_server.seen) == 1
    assert correct.counts == {"asked": 1, "cached": 1, "prompt_tokens": 50, "completion_tokens": 7}
    path, key, body = chat_server.seen[0]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "small")
    assert "secret" not in "".join(file.read_text() for file in tmp_path.iterdir())


def test_who_asks_the_same_at_the_same_time_gets_the_same_reply(chat_server, tmp_path, asked):
    """As two processes may, which mine about one picture: the reply that was kept first is everybody's."""
    chat_server.replies = [(200, f"It is the {name} <seg>.") for name in ("blue cone", "green cube")]
    correct = corrector(chat_server, tmp_path, workers=2)
    one, other = correct(asked * 2)
    assert one == other and corrector(chat_server, tmp_path)(asked) == [one]


def test_the_server_sees_picture_question_and_answer(chat_server, tmp_path, asked):
    corrector(chat_server, tmp_path)(asked)
    picture, text = chat_server.seen[0][2]["messages"][1]["content"]
    data = picture["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == asked[0][0].image.size
    assert asked[0][1].question in text["text"] and asked[0][2] in text["text"]


def test_without_pictures_the_names_of_things_are_sent(chat_server, tmp_path, asked):
    corrector(chat_server, tmp_path, pictures=False)(asked)
    text = chat_server.seen[0][2]["messages"][1]["content"]
    assert isinstance(text, str) and all(name in text for name in asked[0][0].objects)


def test_a_busy_server_is_asked_again(chat_server, tmp_path, asked):
    chat_server.replies = [(429, "slow down"), (500, "oh"), (200, "It is the red ball <seg>.")]
    assert corrector(chat_server, tmp_path)(asked) == [None]
    assert len(chat_server.seen) == 3


def test_a_server_that_refuses_is_an_error_of_one_line(chat_server, tmp_path, asked):
    chat_server.replies = [(401, "no such\nkey")]
    with pytest.raises(DataError, match=r"no such key.*OPENAI_API_KEY") as refusal:
        corrector(chat_server, tmp_path)(asked)
    assert "\n" not in str(refusal.value) and f":{chat_server.server_port}" in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_nobody_there_is_an_error_of_one_line(tmp_path, asked):
    correct = EndpointCorrector(Endpoint("http://127.0.0.1:9/v1", "small", retries=0), tmp_path)
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9/v1") as refusal:
        correct(asked)
    assert "\n" not in str(refusal.value)


TWO = "Here are the red ball <seg> and the blue cone <seg>."


@pytest.mark.parametrize(
    "proposed, found",
    [
        (TWO, None),
        (TWO.replace("red ball", "teal  ring"), Correction(TWO.replace("red ball", "teal ring"), PHRASES)),
        (TWO.replace("red ball", "box").replace("blue cone", "small pink plank"), PHRASES),
        ("Here is the red ball <seg>.", REFUSED_SEG),  # a tag is gone
        (TWO.replace(".", " and a star <seg>."), REFUSED_SEG),  # a tag is new
        (TWO.replace("red ball ", ""), REFUSED_SEG),  # a tag without a phrase
        (TWO.replace("Here are", "These are"), REFUSED_WORDS),
        (TWO.replace("and the", "next to the"), REFUSED_WORDS),
        (TWO.replace(".", ", I think."), REFUSED_WORDS),
        (TWO.replace("red ball", "thing that one could say a lot about if asked"), REFUSED_WORDS),
        ("I am sorry, I cannot see the picture.", REFUSED_SEG),
        ("", REFUSED_SEG),
    ],
)
def test_only_minimal_corrections_are_taken(proposed, found):
    result = minimal_correction(TWO, ("red ball", "blue cone"), proposed, "<seg>")
    assert (result.kind if found == PHRASES else result) == found


def test_a_denial_has_no_phrase_to_replace():
    assert minimal_correction("There is no ball.", (), "There is no cone.", "<seg>") == REFUSED_SEG
