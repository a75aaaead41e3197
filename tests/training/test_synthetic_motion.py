"""Where the labels of the synthetic data are: in motion around the contact, divided between the views."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mvfoul.clip import CONTACT_FRAME, TIMELINE_FPS, preset
from mvfoul.labels import ACTION_CLASSES, OFFENCE_SEVERITIES, FoulLabels
from training.synthetic.cameras import KINDS, Camera, sample_cameras
from training.synthetic.render import render_clip
from training.synthetic.scene import DECISIVE_S, NUM_FRAMES, sample_scene

ALL_LABELS = [
    FoulLabels(a, s) for a, s in itertools.product(range(len(ACTION_CLASSES)), range(len(OFFENCE_SEVERITIES)))
]
WIDTH, HEIGHT = 64, 36
SCENES = 192


def camera(outlook, replay_speed=1.0):
    kind = next(kind for kind in KINDS if kind.outlook == outlook)
    return Camera(kind, replay_speed, WIDTH, HEIGHT)


def film(labels, outlook, seed, frames=None):
    """Return frames `[n, H, W, 3]` of a scene; the same seed draws the same chances whatever the labels."""
    rng = np.random.default_rng(seed)
    clip = list(render_clip(sample_scene(labels, rng), camera(outlook), rng))
    return np.stack(clip if frames is None else [clip[i] for i in frames])


# --- exact: what cannot depend on the labels


@pytest.mark.parametrize("outlook", ["wide", "close-up", "blocked"])
def test_the_contact_frame_is_the_same_picture_for_all_labels(outlook):
    first, *others = (film(labels, outlook, 5, [CONTACT_FRAME]) for labels in ALL_LABELS)
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize(
    ("outlook", "deciding"), [("wide", "action"), ("close-up", "offence_severity"), ("blocked", "")]
)
def test_a_view_shows_one_label_and_nothing_of_the_other(outlook, deciding):
    clips = {labels: film(labels, outlook, 6, range(50, 100)) for labels in ALL_LABELS}
    for one, other in itertools.combinations(ALL_LABELS, 2):
        same_label = not deciding or getattr(one, deciding) == getattr(other, deciding)
        assert np.array_equal(clips[one], clips[other]) == same_label, (one, other)


def test_before_and_after_the_contact_motion_means_nothing():
    for seed in range(5):
        scenes = [sample_scene(labels, np.random.default_rng(seed)) for labels in ALL_LABELS]
        for part in ("before", "after"):
            for what in ("play", "tumble"):
                assert len({getattr(getattr(scene, what), part) for scene in scenes}) == 1


def test_the_window_of_the_clip_contract_lies_within_the_decisive_time():
    window = preset("two-second").window
    times_s = [(frame - CONTACT_FRAME) / TIMELINE_FPS for frame in (window[0], window[1] - 1)]
    assert max(map(abs, times_s)) < DECISIVE_S
    # What is outside must be there, or the wrong frames would do as well.
    assert (NUM_FRAMES - 1 - CONTACT_FRAME) / TIMELINE_FPS > DECISIVE_S


def test_every_action_has_a_view_for_each_label_in_any_order():
    drawn = [sample_cameras(np.random.default_rng(seed), width_px=WIDTH, height_px=HEIGHT) for seed in range(300)]
    outlooks = [[camera.kind.outlook for camera in cameras] for cameras in drawn]
    assert all({"wide", "close-up"} <= set(row) for row in outlooks)
    assert {len(row) for row in outlooks} == {2, 3, 4}
    first = [row[0] for row in outlooks]
    # No position tells the kind: evaluating only the first views must not reveal one label always.
    assert all(first.count(outlook) > 60 for outlook in ("wide", "close-up"))


def test_only_views_that_keep_their_meaning_are_slowed_down():
    for seed in range(50):
        for view in sample_cameras(np.random.default_rng(seed), width_px=WIDTH, height_px=HEIGHT):
            assert 1.0 <= view.replay_speed <= 2.0
            assert view.replay_speed == 1.0 or view.kind.outlook != "wide"


# --- statistical: one frame is not enough, two frames are


@pytest.fixture(scope="module")
def films():
    """Grey frames 55, 70 and 85 `[n, 3, H, W]` of scenes with labels in turn, per kind of view, and the direction."""
    grey = {}
    for outlook in ("wide", "close-up"):
        clips = [film(ALL_LABELS[i % len(ALL_LABELS)], outlook, 1000 + i, (55, 70, 85)) for i in range(SCENES)]
        grey[outlook] = np.stack(clips).astype(np.float64).mean(-1)
    labels = [ALL_LABELS[i % len(ALL_LABELS)] for i in range(SCENES)]
    directions = {
        "wide": np.array([one.action % 4 for one in labels]),
        "close-up": np.array([one.offence_severity for one in labels]),
    }
    return grey, directions


def still_features(frames):
    """Describe each frame `[n, H, W]` by its coarse picture, its brightness and contrast, and its edges."""
    coarse = frames.reshape(len(frames), 6, HEIGHT // 6, 8, WIDTH // 8).mean((2, 4)).reshape(len(frames), -1)
    down, right = np.diff(frames, axis=1), np.diff(frames, axis=2)
    moments = [frames.mean((1, 2)), frames.std((1, 2)), down.std((1, 2)), right.std((1, 2)), down.mean((1, 2))]
    features = np.column_stack([coarse, *moments])
    return (features - features.mean(0)) / (features.std(0) + 1e-9)


def ridge_accuracy(features, answers):
    """Fit on even rows' scenes of each label, score on the others."""
    train = np.arange(len(features)) // len(ALL_LABELS) % 2 == 0
    design = np.column_stack([features, np.ones(len(features))])
    targets = np.eye(4)[answers]
    gram = design[train].T @ design[train] + 10 * np.eye(design.shape[1])
    weights = np.linalg.solve(gram, design[train].T @ targets[train])
    return float(((design[~train] @ weights).argmax(1) == answers[~train]).mean())


@pytest.mark.parametrize("outlook", ["wide", "close-up"])
@pytest.mark.parametrize("frame", [0, 1, 2])
def test_a_classifier_of_still_frames_stays_at_chance(films, outlook, frame):
    grey, directions = films
    accuracy = ridge_accuracy(still_features(grey[outlook][:, frame]), directions[outlook])
    deviation = np.sqrt(0.25 * 0.75 / (SCENES / 2))
    assert accuracy < 0.25 + 3 * deviation


@pytest.mark.parametrize("outlook", ["wide", "close-up"])
def test_two_frames_tell_what_one_does_not(films, outlook):
    grey, directions = films
    middle = np.s_[:, :, HEIGHT // 3 :, WIDTH // 6 : -WIDTH // 6]  # the shirt, in a close-up
    seen = grey[outlook][middle]
    shifts = [best_shift(first, second) for first, second in zip(seen[:, 1], seen[:, 2], strict=True)]
    # Right, up, left, down, in the picture's own units: y counts down.
    compass = np.array([(1, 0), (0, -1), (-1, 0), (0, 1)])
    found = [int((compass @ (x / WIDTH, y / HEIGHT)).argmax()) for x, y in shifts]
    assert np.mean(np.array(found) == directions[outlook]) > 0.9


def best_shift(first, second):
    """Return by how many pixels (x, y) `first` is moved to look most like `second`."""
    best, answer = np.inf, (0, 0)
    height, width = first.shape
    for y, x in itertools.product(range(-10, 11), range(-16, 17)):
        here = first[max(0, -y) : height - max(0, y), max(0, -x) : width - max(0, x)]
        there = second[max(0, y) : height + min(0, y), max(0, x) : width + min(0, x)]
        if (error := float(((here - there) ** 2).mean())) < best:
            best, answer = error, (x, y)
    return answer
