import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from mvfoul.clip import preset
from mvfoul.errors import AnnotationError, ConfigError
from mvfoul.video import decode_clip
from training.dataset import ActionBatch, ActionSample, MultiViewDataset, collate_actions

SPEC = preset(num_frames=4, size_px=16)
LEVELS = (40, 70, 100, 130, 160, 190)
"""Grey levels far enough apart to tell clips by."""


@pytest.fixture
def write(write_split, action, grey_clip):
    """`write([[40, None, b"broken"], [70]])`: one action per list; a clip per grey level, bytes, or None."""

    def write_actions(actions, folder="train", **fields):
        written = {}
        for index, contents in enumerate(actions):
            clips = {f"clip_{k}": grey_clip(c) if isinstance(c, int) else c for k, c in enumerate(contents)}
            written[str(index)] = action(str(index), clips, **fields)
        return write_split(written, folder)

    return write_actions


def open_data(root, split="train", **options):
    return MultiViewDataset(root, split, **{"clip": SPEC, **options})


def levels(views):
    """The grey level in `LEVELS` that each view shows."""
    means = views.float().mean(dim=(1, 2, 3, 4))
    return [min(LEVELS, key=lambda level: abs(level - mean)) for mean in means.tolist()]


def load_all(data, **options):
    return list(DataLoader(data, collate_fn=collate_actions, **{"batch_size": 2, **options}))


def test_the_guides_call_gives_two_seconds_in_16_frames(sample_root):
    data = MultiViewDataset(path=str(sample_root), split="test", num_views=5, fps=25.0)
    assert data.clip == preset("two-second")
    sample = data[0]
    assert sample.views.shape == (3, 3, 16, 224, 224)
    assert sample.views.dtype == torch.uint8
    assert (sample.action_id, sample.action, sample.offence_severity, sample.skipped) == ("0", 1, 2, ())
    expected = decode_clip(sample_root / "test" / "action_0" / "clip_1.mp4", data.clip)
    assert torch.equal(sample.views[1], torch.from_numpy(expected))


def test_an_item_has_the_views_in_order_and_the_labels(write):
    data = open_data(write([[40, 100], [70]], **{"Action class": "Dive", "Severity": "5.0"}))
    assert len(data) == 2
    assert levels(data[0].views) == [40, 100]
    assert (data[0].action, data[0].offence_severity, data[1].action_id) == (7, 3, "1")


def test_actions_without_labels_have_minus_1(write):
    root = write([[40]], folder="challenge", **{"Action class": "", "Offence": "", "Severity": ""})
    sample = open_data(root, "chall")[0]
    assert (sample.action, sample.offence_severity) == (-1, -1)


def test_an_index_beyond_the_end_is_an_index_error(write):
    data = open_data(write([[40]]))
    with pytest.raises(IndexError):
        data[1]
    assert data[-1].action_id == "0"


def test_a_batch_lays_the_views_one_after_the_other(write):
    batch = collate_actions([*open_data(write([[40, 100], [70], [130, 160, 190]]))])
    assert levels(batch.views) == [40, 100, 70, 130, 160, 190]
    assert batch.view_counts.tolist() == [2, 1, 3]
    assert batch.action_ids == ("0", "1", "2")
    assert batch.action.tolist() == [0, 0, 0]
    assert batch.offence_severity.tolist() == [2, 2, 2]
    assert (len(batch), batch.left_out, batch.skipped) == (3, (), ())


def test_evaluation_takes_the_first_views(write):
    data = open_data(write([[40, 70, 100, 130]], "test"), "test", num_views=2)
    assert {tuple(levels(data[0].views)) for _ in range(3)} == {(40, 70)}


def test_training_draws_among_the_views_anew_each_epoch(write):
    data = open_data(write([[40, 70, 100, 130]]), num_views=2)
    drawn = []
    for epoch in range(20):
        data.set_epoch(epoch)
        drawn.append(tuple(levels(data[0].views)))
    assert all(len(set(views)) == 2 and list(views) == sorted(views) for views in drawn)
    assert {view for views in drawn for view in views} == {40, 70, 100, 130}
    data.set_epoch(3)
    assert tuple(levels(data[0].views)) == drawn[3]


def test_drawing_views_can_be_turned_off_for_training_and_on_for_others(write):
    data = open_data(write([[40, 70, 100, 130]]), num_views=1)
    assert data.random_views
    data.random_views = False
    for epoch in range(5):
        data.set_epoch(epoch)
        assert levels(data[0].views) == [40]


def test_another_seed_draws_other_views(write):
    root = write([[40, 70, 100, 130]] * 6)
    first, second = open_data(root, num_views=1), open_data(root, num_views=1)
    second.seed = 1
    assert [levels(sample.views) for sample in first] != [levels(sample.views) for sample in second]


def add_noise(view):
    return view + torch.randint(0, 50, view.shape, dtype=torch.uint8)


def test_samples_depend_on_the_epoch_and_not_on_workers(write):
    root = write([[40, 70, 100]] * 4)
    data = open_data(root, transform=add_noise, num_views=2)
    data.set_epoch(1)
    in_process = load_all(data)
    in_workers = load_all(data, num_workers=2)
    for ours, theirs in zip(in_process, in_workers, strict=True):
        assert torch.equal(ours.views, theirs.views)
    data.set_epoch(2)
    assert not torch.equal(load_all(data)[0].views, in_process[0].views)


def test_workers_that_persist_obey_set_epoch(write):
    data = open_data(write([[40, 70, 100, 130]] * 4), num_views=1)
    loader = DataLoader(data, batch_size=4, num_workers=1, persistent_workers=True, collate_fn=collate_actions)
    drawn = []
    for epoch in range(6):
        data.set_epoch(epoch)
        (batch,) = loader
        drawn.append(tuple(levels(batch.views)))
        assert drawn[-1] == tuple(view for sample in data for view in levels(sample.views))
    assert len(set(drawn)) > 1


def test_a_transform_changes_each_view_and_leaves_the_global_generator_alone(write):
    data = open_data(write([[40, 70]]), transform=add_noise)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    views = data[0].views
    assert torch.equal(torch.rand(1), expected)
    assert (views.float().std(dim=(1, 2, 3, 4)) > 5).all()
    assert not torch.equal(views[0] - 40, views[1] - 70), "each view has its own noise"


@pytest.mark.parametrize("transform", [lambda view: view.float(), lambda view: view[:, :2]])
def test_a_transform_that_changes_shape_or_dtype_is_refused(write, transform):
    data = open_data(write([[40]]), transform=transform)
    with pytest.raises(ConfigError, match=r"transform turned torch\.uint8 \[3, 4, 16, 16\] into .* it must keep both"):
        data[0]


def test_a_clip_that_cannot_be_decoded_is_left_out_and_named(write, grey_clip):
    too_short = grey_clip(40, frames=60)
    cut_off = grey_clip(40)[:1000]
    data = open_data(write([[b"", 70, too_short, cut_off, b"no video"]]))
    sample = data[0]
    assert levels(sample.views) == [70]
    assert len(sample.skipped) == 4
    for k, reason in ((0, "empty"), (2, "60 readable frames"), (3, "moov atom not found"), (4, "no video")):
        (sentence,) = (s for s in sample.skipped if f"action_0/clip_{k}.mp4: " in s)
        assert sentence.startswith("action 0: ")
        assert reason in sentence


def test_a_clip_that_disappears_or_cannot_be_read_is_left_out(write):
    root = write([[40, 70, 100, 130]])
    data = open_data(root)
    gone, folder, unreadable = (root / "train" / "action_0" / f"clip_{k}.mp4" for k in range(3))
    for path in (gone, folder, unreadable):
        path.unlink()
    folder.mkdir()
    unreadable.symlink_to("/proc/self/mem")  # a file whose first byte gives an input/output error, to root too
    sample = data[0]
    assert levels(sample.views) == [130]
    assert len(sample.skipped) == 3
    assert "Input/output error" in sample.skipped[2]


def test_a_damaged_view_is_replaced_by_the_next_one(write):
    sample = open_data(write([[b"broken", 70, 100, 130]], "test"), "test", num_views=2)[0]
    assert levels(sample.views) == [70, 100]
    assert len(sample.skipped) == 1


def test_an_action_without_a_view_is_left_out_of_its_batch_and_named(write):
    batch = collate_actions([*open_data(write([[b"broken", b"broken"], [70]]))])
    assert batch.action_ids == ("1",)
    assert batch.left_out == ("0",)
    assert batch.view_counts.tolist() == [1]
    assert len(batch.skipped) == 2


def test_a_batch_without_any_view_is_empty_and_not_an_error(write):
    batches = load_all(open_data(write([[b"broken"], [b"broken"], [70]])), num_workers=1)
    assert [len(batch) for batch in batches] == [0, 1]
    assert batches[0].views.shape == (0, 3, 4, 16, 16)
    assert batches[0].views.dtype == torch.uint8
    assert batches[0].view_counts.tolist() == []
    assert batches[0].left_out == ("0", "1")


def test_a_batch_without_samples_is_empty_where_the_clip_tells_its_shape():
    batch = collate_actions([], clip=SPEC)
    assert (len(batch), batch.views.shape, batch.views.dtype) == (0, (0, 3, 4, 16, 16), torch.uint8)
    assert {len(t) for t in (batch.view_kinds, batch.view_counts, batch.action, batch.offence_severity)} == {0}
    with pytest.raises(ValueError, match="no samples to collate"):
        collate_actions([])


def test_the_first_clip_is_live_and_the_others_are_replays_unless_it_is_slowed(write_split, action, grey_clip):
    clips = {f"clip_{k}": grey_clip(40) for k in range(3)}
    normal, slowed, odd = (action(str(index), clips) for index in range(3))
    slowed[0]["Clips"][0]["Replay speed"] = "2.5"
    odd[0]["Clips"][0]["Replay speed"] = ""
    data = open_data(write_split({"0": normal, "1": slowed, "2": odd}))
    assert [sample.view_kinds.tolist() for sample in data] == [[0, 1, 1], [1, 1, 1], [0, 1, 1]]
    assert collate_actions([data[0], data[1]]).view_kinds.tolist() == [0, 1, 1, 1, 1, 1]


def test_the_kinds_go_with_the_views_that_are_left(write):
    root = write([[b"broken", 70, 100], [40]])
    assert [sample.view_kinds.tolist() for sample in open_data(root)] == [[1, 1], [0]]


def test_a_batch_moves_as_a_whole(write):
    batch = collate_actions([open_data(write([[40]]))[0]])
    moved = batch.to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert [tensor.device.type for tensor in tensors] == ["meta"] * 5
    assert moved.action_ids == batch.action_ids


@pytest.mark.gpu
def test_a_batch_is_pinned_by_the_loader_and_reaches_the_gpu(write):
    (batch,) = load_all(open_data(write([[40, 70]])), pin_memory=True)
    assert isinstance(batch, ActionBatch)
    assert batch.views.is_pinned()
    assert batch.to("cuda", non_blocking=True).views.device.type == "cuda"


def test_preloading_gives_the_same_samples_without_the_files(write):
    root = write([[40, b"broken"], [70, 100]])
    data, plain = open_data(root), [*open_data(root)]
    calls = []
    faults = data.preload(max_bytes=10**6, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(faults) == 1
    assert "clip_1.mp4" in faults[0]
    for path in root.rglob("*.mp4"):
        path.unlink()
    for batches in (load_all(data), load_all(data, num_workers=1)):
        (batch,) = batches
        assert torch.equal(batch.views, torch.cat([sample.views for sample in plain]))
        assert batch.skipped == plain[0].skipped


def test_a_transform_does_not_reach_the_preloaded_pixels(write):
    def blacken(view):
        return view.zero_()

    data = open_data(write([[40]]), transform=blacken)
    data.preload(max_bytes=10**6)
    assert not data[0].views.any()
    data.transform = None
    assert levels(data[0].views) == [40]


def test_preloading_more_than_allowed_is_refused_before_any_work(write):
    data = open_data(write([[40, 70]]))
    with pytest.raises(ConfigError, match=r"train: 2 clips need 6,144 bytes of memory, max_bytes is 6,000"):
        data.preload(max_bytes=6000, progress=lambda done, total: pytest.fail(f"decoded {done} of {total}"))


def test_preloading_again_replaces_what_was_loaded(write, grey_clip):
    root = write([[40]])
    data = open_data(root)
    data.preload(max_bytes=10**6)
    (root / "train" / "action_0" / "clip_0.mp4").write_bytes(grey_clip(190))
    data.preload(max_bytes=10**6)
    assert levels(data[0].views) == [190]


def test_a_dataset_can_be_sent_to_workers_that_are_spawned(write):
    data = open_data(write([[40]]))
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301
    assert torch.equal(copy[0].views, data[0].views)


@pytest.mark.parametrize(
    ("fps", "first", "last"), [(25.0, (51, 54, 57), 98), (17.0, (52, 55, 58), 98), (8.0, (50, 54, 57), 97)]
)
def test_fps_is_the_rate_at_which_the_window_is_read(write, fps, first, last):
    frames = MultiViewDataset(write([[40]]), "train", fps=fps).clip.frame_indices
    assert len(frames) == 16
    assert frames[:3] == first
    assert frames[-1] == last


def test_at_17_fps_the_frames_of_vars_2023_agree_with_the_clip(write):
    root = write([[40]])
    vars_2023 = preset("vars-2023")
    assert MultiViewDataset(root, "train", fps=17.0, clip=vars_2023).clip == vars_2023
    assert MultiViewDataset(root, "train", fps=25.0, clip=vars_2023).clip == vars_2023
    with pytest.raises(ConfigError, match=r"fps 12\.0 contradicts the clip spec: its frames \[65, "):
        MultiViewDataset(root, "train", fps=12.0, clip=vars_2023)


@pytest.mark.parametrize("fps", [0.0, -1.0, 25.5, float("nan"), float("inf")])
def test_a_rate_that_the_data_set_does_not_have_is_refused(write, fps):
    with pytest.raises(ConfigError, match="it must be above 0 and at most 25"):
        MultiViewDataset(write([[40]]), "train", fps=fps)


def test_a_rate_that_leaves_too_few_frames_is_refused(write):
    with pytest.raises(ConfigError, match=r"fps 5\.0 yields 10 frames in 2 s, the default clip needs 16"):
        MultiViewDataset(write([[40]]), "train", fps=5.0)


@pytest.mark.parametrize("num_views", [0, -1, 6])
def test_a_number_of_views_out_of_range_is_refused(write, num_views):
    with pytest.raises(ConfigError, match=f"num_views is {num_views}; it must be from 1 to the clip spec's 5"):
        open_data(write([[40]]), num_views=num_views)


def test_a_split_that_is_not_there_is_refused(write):
    with pytest.raises(AnnotationError, match="has no split 'valid'"):
        open_data(write([[40]]), "valid")


def test_unfiltered_actions_are_kept_without_labels(write):
    root = write([[40]], Offence="Between")
    sample: ActionSample = open_data(root, filtered=False)[0]
    assert (sample.action, sample.offence_severity) == (-1, -1)
