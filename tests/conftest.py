"""What tests share: no network, real scenes, an untrained small model, and the same model taught two of the scenes."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
worker = os.environ.get("PYTEST_XDIST_WORKER")
if worker and hasattr(os, "sched_setaffinity"):  # one core each: threads of several would wait for one another
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

import copy
import gc

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from popen.data.scene_questions import sample
from popen.lvlm.calibration import embedding_spread, truth_drafts
from popen.lvlm.packing import supervised_batch
from popen.lvlm.tiny import build_tiny

STEPS = 300
LONG = (
    "test_zero.py",
    "test_fsdp2.py",
    "test_demo.py",
    "test_medical.py",
    "test_two_nodes.py",
    "test_scripts.py",
    "test_two_processes.py",
    "test_ablation.py",
    "test_recipes_run.py",
    "test_7b_preferences.py",
    "test_remote_code.py",
)


def pytest_collection_modifyitems(items):
    """Files that take minutes come first, so that no worker is left with one while the others are done."""
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))


def pytest_collection_finish():
    """Each trainer has Python's garbage collected several times; what is imported by now is none."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()


@pytest.fixture(scope="session")
def samples():
    """Four real scenes of 96 × 96 pixels with up to six questions each; every one has a question without targets."""
    return [sample(seed) for seed in range(4)]


@pytest.fixture(scope="session")
def tiny(samples):
    """An untrained model of 0.17 M parameters and its processor; copy the model before changing it."""
    corpus = [text for s in samples for q in s.questions for text in (q.question, q.answer)]
    model, processor = build_tiny(corpus, seed=0, width=48, layers=1)
    model.config.embedding_std = [0.1, 0.1]
    model.set_attn_implementation("eager")  # the looking loss reads attention weights
    return model.eval(), processor


@pytest.fixture(scope="session")
def taught(tiny, samples):
    """The tiny model after some 100 steps on the first two scenes: it knows their answers by heart, groups and all.

    Its masks are rough, and of other scenes it speaks in the same words: what inference and mining need.
    """
    model, processor = copy.deepcopy(tiny[0]).train(), tiny[1]
    batch = supervised_batch(processor, samples[:2])
    extra = ("token_sequence", "sequence_row", "look_row", "look_column", "look_target")  # quicker without looking
    inputs = {name: value for name, value in batch.items() if name not in extra}
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, fused=True)
    for _ in range(STEPS):
        optimizer.zero_grad()
        output = model(**inputs)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if output.logps.min() > -0.3:  # every token has a probability of 3/4: greedy answers are the taught ones
            break
    else:
        pytest.fail(f"{STEPS} steps did not teach two scenes: CE {output.ce_loss:.3f}")
    model.eval()
    model.config.embedding_std = embedding_spread(truth_drafts(model, processor, samples[:2]))
    return model, processor


@pytest.fixture
def one_process_mesh(tmp_path):
    """A group of one process: pieces of sharded weights are whole, and all else is as with several."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.fixture
def chat_server():
    """Replies from a list of (status, text); the last one is for all further requests; `seen` holds the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.seen.append((self.path, self.headers.get("Authorization"), body))
            status, text = self.server.replies.pop(0) if len(self.server.replies) > 1 else self.server.replies[0]
            reply = {
                "id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
                "usage": {"prompt_tokens": 50, "completion_tokens": 7, "total_tokens": 57},
            }  # fmt: skip
            data = json.dumps(reply if status == 200 else {"error": {"message": text}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    served = HTTPServer(("127.0.0.1", 0), Handler)
    served.seen, served.replies = [], [(200, "")]
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
