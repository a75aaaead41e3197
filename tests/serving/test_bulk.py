"""A whole split through a server: the trainer's own predictions, whatever is interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from mvfoul.errors import ConfigError
from mvfoul.labels import from_soccernet_json
from serving.bulk.actions import list_actions
from serving.bulk.journal import Heading, Journal, Outcome

ACTIONS = 30
LABELS = {"Action class": "Tackling", "Offence": "Offence", "Severity": "1.0"}


def write_split(root, actions):
    """`actions`: by id, the clips that the annotations list, and the bytes of those that are on disk."""
    document = {"Set": "test", "Actions": {}}
    for action_id, (listed, on_disk) in actions.items():
        items = [{"Url": f"Dataset/Test/action_{action_id}/clip_{k}", "Replay speed": "1.0"} for k in listed]
        document["Actions"][action_id] = {**LABELS, "Clips": items}
        folder = root / "Test" / f"action_{action_id}"
        folder.mkdir(parents=True)
        for k, data in on_disk.items():
            (folder / f"clip_{k}.mp4").write_bytes(data)
    (root / "Test" / "annotations.json").write_text(json.dumps(document))
    return root


@pytest.fixture(scope="module")
def data(clips, tmp_path_factory):
    a, b, c, d, e = clips
    actions = {
        "0": ([0, 1], {0: a, 1: b}),
        "1": ([0, 1, 2], {0: c, 2: d}),  # one is missing
        "2": ([0, 3], {0: e, 3: a}),  # a gap
        "3": ([0, 1], {0: b, 1: b"not a video"}),
        "4": ([0, 1], {}),
        "5": ([0], {0: b"not a video"}),
        "6": ([0, 1, 2, 3, 4, 5], {k: clips[k % 5] for k in range(6)}),  # one more than a request takes
        **{str(n): ([0], {0: clips[n % 5]}) for n in range(7, ACTIONS)},
    }
    return write_split(tmp_path_factory.mktemp("data"), actions)


@pytest.fixture
def bulk(run_module, data, tmp_path):
    out = tmp_path / "predictions.json"
    return lambda target, *flags: run_module(
        "serving.bulk", "--data", str(data), "--out", str(out), "--target", target, *flags
    )


def test_predictions_are_those_of_the_evaluation(bulk, server, data, tiny_checkpoint, tmp_path):
    from training.evaluate import EvaluateConfig
    from training.evaluation.run import evaluate_checkpoint

    done = bulk(server.grpc)
    evaluate_checkpoint(
        EvaluateConfig(
            ckpt=tiny_checkpoint, root=data, output=tmp_path / "evaluation", resamples=0, workers=0, device="cpu"
        )
    )
    ours = json.loads((tmp_path / "predictions.json").read_text())
    assert ours == json.loads((tmp_path / "evaluation" / "predictions_test.json").read_text())
    assert set(from_soccernet_json(ours)) == {str(n) for n in range(ACTIONS)} - {"4", "5"}
    assert done.returncode == 1, done.stderr
    assert (
        f"{ACTIONS} actions, {ACTIONS - 2} predictions by artifact {server.artifact}, 2 without, 1 clips left out"
        in done.stdout
    )
    assert "no clip on disk: actions 4" in done.stdout
    report = json.loads((tmp_path / "predictions.report.json").read_text())
    assert set(report["without_prediction"]) == {"4", "5"}
    assert list(report["clips_left_out"]["3"]) == ["clip_1.mp4"]
    assert not list(tmp_path.glob("*.journal"))


def test_whatever_is_interrupted_the_same_command_goes_on(start_server, data, tmp_path, wait_until):
    """Ctrl-C, then SIGKILL with a line half written, then a server that is killed and started again."""
    journal = tmp_path / "predictions.json.journal"

    def answers():
        return max(0, journal.read_bytes().count(b"\n") - 1) if journal.is_file() else 0

    def begin(port):
        before = answers()
        process = start(data, tmp_path / "predictions.json", port)
        wait_until(lambda: answers() > before, "more answers")
        return process

    with start_server("--max-in-flight", "1") as server:
        process = begin(server.grpc)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130
        assert b"the same command goes on from here" in errors
        assert b"Traceback" not in errors

        process = begin(server.grpc)
        process.kill()
        process.communicate()
        with journal.open("ab") as torn:
            torn.write(b'{"action_id": "1')
        answered = answers()

        process = begin(server.grpc)
        server.process.kill()
        server.process.wait()
    with start_server("--max-in-flight", "1", "--grpc-port", server.grpc.rpartition(":")[2]):
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert f"{answered} of {ACTIONS} actions were answered before".encode() in errors
    assert len(json.loads((tmp_path / "predictions.json").read_text())["Actions"]) == ACTIONS - 2


def start(data, out, target):
    command = [sys.executable, "-m", "serving.bulk", "--data", str(data), "--out", str(out), "--target", target]
    return subprocess.Popen([*command, "--concurrency", "3"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def test_answers_of_another_artifact_are_not_mixed_in(bulk, server, data, tmp_path):
    journal = tmp_path / "predictions.json.journal"
    Journal(journal, Heading(str(data.resolve()), "test", "0123456789ab", 5)).__exit__()
    done = bulk(server.grpc)
    assert done.returncode == 2
    assert f"has artifact {server.artifact}, not 0123456789ab" in done.stderr
    assert bulk(server.grpc, "--artifact", "ffffffffffff", "--restart").returncode == 2
    assert bulk(server.grpc, "--restart").returncode == 1


def test_a_changed_clip_is_asked_about_again(tmp_path, clips):
    root = write_split(tmp_path / "data", {"0": ([0], {0: clips[0]})})
    heading = Heading("data", "test", "a", 5)
    (action,) = list_actions(root, "test", max_views=5)
    with Journal(tmp_path / "journal", heading) as journal:
        journal.add(action, Outcome("0", (1, 2), left_out={"clip_1.mp4": "why"}))
    with Journal(tmp_path / "journal", heading) as journal:
        assert journal.knows(action)
        assert journal.outcomes == {"0": Outcome("0", (1, 2), left_out={"clip_1.mp4": "why"})}
        action.clips[0].write_bytes(clips[1])
        (changed,) = list_actions(root, "test", max_views=5)
        assert not journal.knows(changed)
        with pytest.raises(ConfigError, match="another run writes"):
            Journal(tmp_path / "journal", heading)


def test_a_server_that_is_not_there_and_wrong_data_have_their_exit_codes(bulk, run_module, tmp_path):
    assert bulk("127.0.0.1:1").returncode == 3
    done = run_module("serving.bulk", "--data", str(tmp_path), "--out", str(tmp_path / "x.json"))
    assert (done.returncode, "has no split 'test'" in done.stderr) == (2, True)
    done = run_module("serving.bulk", "--data", str(tmp_path), "--out", "x.json", "--split", "final")
    assert (done.returncode, "unknown split 'final'" in done.stderr) == (2, True)
