"""`import popen` alone is enough for the Auto classes: the snippet of a model card runs as it stands."""

import subprocess
import sys

from popen.hub.cards import CardFacts, card
from popen.hub.folder import recognise
from popen.hub.push import push
from tests.hub.conftest import ROOT
from tests.hub.test_cards import snippet

QUICK = (
    "import sys, popen\nimport popen.data.rle\nprint({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
)


def test_the_snippet_of_a_card_runs(hub, away, model_folder, shipped, samples, tmp_path):
    push(model_folder, "org/tiny")
    samples[0].image.save(tmp_path / "picture.png")
    code = snippet(hub.files("model", "org/tiny")["README.md"].decode())
    assert code == snippet(card("org/tiny", recognise(model_folder), CardFacts()))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=away | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = shipped[0].segment([samples[0].image], ["Where is the red ball?"], shipped[1])[0]
    assert done.stdout.splitlines()[0] == answer.text
    assert len(done.stdout.splitlines()) == 1 + len(answer.targets)


def test_importing_popen_stays_quick(away):
    done = subprocess.run([sys.executable, "-c", QUICK], env=away, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "set()", done.stderr
