import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvfoul.errors import AnnotationError
from mvfoul.labels import ACTION_CLASSES, OFFENCE_SEVERITIES
from training.annotations import load_annotations

CLIP = {"clip_0": b"not opened here"}
KEPT = ("kept", "Tackling", "Offence", "3.0")


def official_filter(action_class, offence, severity):
    """The filter as DESIGN.md tells it, on the official spellings: None or the two labels."""
    if action_class in ("", "Dont know"):
        return None
    if offence in ("", "Between") and action_class != "Dive":
        return None
    no_offence = offence in ("No offence", "No Offence")
    if severity in ("", "2.0", "4.0") and action_class != "Dive" and not no_offence:
        return None
    if no_offence:
        return action_class, "No offence"
    cards = {"3.0": "Offence + Yellow card", "5.0": "Offence + Red card"}
    return action_class, cards.get(severity, "Offence + No card")


@pytest.fixture
def load(write_split, action):
    """`load(("id", action class, offence, severity), ..., filtered=True)` on one split."""

    def write_and_load(*actions, folder="train", filtered=True):
        written = {
            action_id: action(action_id, CLIP, **{"Action class": a, "Offence": o, "Severity": s})
            for action_id, a, o, s in actions
        }
        return load_annotations(write_split(written, folder), folder, filtered=filtered)

    return write_and_load


def names(record):
    return None if record.labels is None else (record.labels.action_class, record.labels.severity_name)


def test_the_filter_is_the_official_one_for_every_combination_of_fields(load):
    combinations = {
        str(i): (action_class, offence, severity)
        for i, (action_class, offence, severity) in enumerate(
            (a, o, s)
            for a in ("", "Dont know", *ACTION_CLASSES)
            for o in ("", "Between", "Offence", "No offence", "No Offence")
            for s in ("", "1.0", "2.0", "3.0", "4.0", "5.0")
        )
    }
    annotations = load(*((action_id, *fields) for action_id, fields in combinations.items()))
    expected = {action_id: official_filter(*fields) for action_id, fields in combinations.items()}
    assert {record.action_id: names(record) for record in annotations.records} == {
        action_id: labels for action_id, labels in expected.items() if labels
    }
    assert {item.action_id for item in annotations.dropped} == {i for i, labels in expected.items() if not labels}


@pytest.mark.parametrize("severity", ["3.0", 3.0, 3, "3"])
def test_numbers_and_strings_mean_the_same(load, severity):
    assert names(load(("0", "High leg", "Offence", severity)).records[0]) == ("High leg", "Offence + Yellow card")


def test_every_dropped_action_has_a_reason_and_the_table_counts_them(load):
    annotations = load(
        KEPT,
        ("1", "", "Offence", "1.0"),
        ("2", "Dont know", "Offence", "1.0"),
        ("3", "Pushing", "Between", "1.0"),
        ("4", "Pushing", "Offence", "4.0"),
        ("5", "Pushing", "Offence", 4.0),
    )
    assert {item.action_id: item.reason for item in annotations.dropped} == {
        "1": 'action class is "" or "Dont know"',
        "2": 'action class is "" or "Dont know"',
        "3": 'offence is "Between"',
        "4": 'severity is "4.0"',
        "5": 'severity is "4.0"',
    }
    assert annotations.dropped_table().splitlines() == [
        "train: 1 actions used, 5 dropped",
        '      2  action class is "" or "Dont know"',
        '      2  severity is "4.0"',
        '      1  offence is "Between"',
    ]


def test_without_the_filter_everything_is_kept_and_the_rest_is_unlabelled(load):
    annotations = load(KEPT, ("1", "Pushing", "Between", ""), filtered=False)
    assert [names(record) for record in annotations.records] == [("Tackling", "Offence + Yellow card"), None]
    assert annotations.dropped == ()


def test_a_missing_label_field_counts_as_empty(write_split, action):
    fields, clips = action("1", CLIP)
    fields = {key: value for key, value in fields.items() if key != "Severity"}
    annotations = load_annotations(write_split({"0": action("0", CLIP), "1": (fields, clips)}), "train")
    assert [item.reason for item in annotations.dropped] == ['severity is ""']


def test_a_challenge_split_without_labels_is_kept_whole(write_split, action):
    fields, clips = action("0", CLIP)
    bare = {"Clips": fields["Clips"]}
    empty = {**fields, "Action class": "", "Offence": "", "Severity": ""}
    annotations = load_annotations(write_split({"0": (bare, clips), "1": (empty, clips)}, "challenge"), "challenge")
    assert [names(record) for record in annotations.records] == [None, None]
    assert annotations.class_counts("action") == (0,) * 8


def test_a_challenge_split_with_labels_is_filtered_like_any_other(load):
    annotations = load(KEPT, ("1", "", "", ""), folder="chall")
    assert [record.action_id for record in annotations.records] == ["kept"]


@pytest.mark.parametrize(
    ("folder", "split", "name"),
    [
        ("train", "Train", "train"),
        ("Train", "train", "train"),
        ("valid", "validation", "valid"),
        ("Valid", "val", "valid"),
        ("test", "TEST", "test"),
        ("chall", "challenge", "challenge"),
        ("Challenge", "chall", "challenge"),
    ],
)
def test_a_split_is_found_in_any_spelling(write_split, action, folder, split, name):
    annotations = load_annotations(write_split({"0": action("0", CLIP)}, folder), split)
    assert annotations.split == name
    assert annotations.records[0].split == name
    assert annotations.folder.name == folder


def test_clips_come_in_the_order_of_the_annotations_with_what_is_known_of_them(write_split, action):
    fields, clips = action("7", {"clip_0": b"x", "clip_1": b"x"})
    fields["Clips"][1] |= {"Camera type": "Goal camera", "Replay speed": "4.2", "Timestamp": ""}
    root = write_split({"7": (fields, clips)})
    first, second = load_annotations(root, "train").records[0].clips
    assert (first.path, second.path) == tuple(root / "train" / "action_7" / f"clip_{k}.mp4" for k in (0, 1))
    assert (first.camera_type, first.replay_speed, first.timestamp_ms) == ("Main camera center", 1.0, 1259839.0)
    assert (second.camera_type, second.replay_speed, second.timestamp_ms) == ("Goal camera", 4.2, None)


def issues(annotations):
    return {(issue.action_id, issue.path.stem, issue.reason) for issue in annotations.clip_issues}


def test_an_action_keeps_the_clips_that_exist_and_the_others_are_reported(write_split, action):
    root = write_split({"0": action("0", {"clip_0": None, "clip_1": b"x", "clip_3": b"x"})})
    (root / "train" / "action_0" / "clip_9.mp4").write_bytes(b"x")
    annotations = load_annotations(root, "train")
    assert [clip.path.stem for clip in annotations.records[0].clips] == ["clip_1", "clip_3"]
    assert annotations.view_counts() == {2: 1}
    assert issues(annotations) == {
        ("0", "clip_0", "missing on disk"),
        ("0", "clip_2", "gap in the clip numbers"),
        ("0", "clip_9", "on disk but not in the annotations"),
    }


def test_a_clip_that_is_listed_twice_is_one_view(write_split, action):
    fields, clips = action("0", CLIP)
    fields["Clips"].append(dict(fields["Clips"][0]))
    annotations = load_annotations(write_split({"0": (fields, clips)}), "train")
    assert len(annotations.records[0].clips) == 1
    assert issues(annotations) == {("0", "clip_0", "listed twice")}


@pytest.mark.parametrize("clips", [{}, {"clip_0": None}])
def test_an_action_without_any_clip_is_dropped(write_split, action, clips):
    annotations = load_annotations(write_split({"0": action("0", CLIP), "1": action("1", clips)}), "train")
    assert [(item.action_id, item.reason) for item in annotations.dropped] == [("1", "no clip on disk")]


@pytest.mark.parametrize("url", ["action_0/clip_0", "Dataset\\Train\\action_0\\clip_0", "x/action_0/clip_0.mp4"])
def test_a_url_counts_by_its_last_part(write_split, action, url):
    fields, clips = action("0", CLIP)
    fields["Clips"][0]["Url"] = url
    assert len(load_annotations(write_split({"0": (fields, clips)}), "train").records[0].clips) == 1


@pytest.mark.parametrize("url", ["", "clip_0", "action_0/../../secret", "action_0/clip_x", None])
def test_a_url_of_another_kind_is_refused_with_its_action(write_split, action, url):
    fields, clips = action("0", CLIP)
    fields["Clips"][0]["Url"] = url
    with pytest.raises(AnnotationError, match=r"action 0: clip Url .* does not end in action_<id>/clip_<k>"):
        load_annotations(write_split({"0": (fields, clips)}), "train")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("Action class", "Sliding", "action 12: unknown action class 'Sliding'"),
        ("Offence", "Maybe", "action 12: unknown offence 'Maybe'"),
        ("Severity", "6.0", "action 12: unknown severity '6.0'"),
        ("Severity", "red", "action 12: unknown severity 'red'"),
    ],
)
def test_an_unknown_label_names_the_action_and_the_value(write_split, action, field, value, message):
    root = write_split({"12": action("12", CLIP, **{field: value})})
    with pytest.raises(AnnotationError, match=message):
        load_annotations(root, "train")


def test_clips_that_are_no_list_are_refused_with_their_action(write_split, action):
    fields, clips = action("3", CLIP)
    with pytest.raises(AnnotationError, match='action 3: "Clips" is not a list of objects'):
        load_annotations(write_split({"3": ({**fields, "Clips": "clip_0"}, clips)}), "train")


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(AnnotationError, match="nowhere is not a folder; name the one that holds train, valid and test"):
        load_annotations(tmp_path / "nowhere", "train")


def test_a_missing_split_names_those_that_exist(write_split, action):
    write_split({"0": action("0", CLIP)}, "Test")
    root = write_split({"0": action("0", CLIP)}, "train")
    with pytest.raises(AnnotationError, match=r"has no split 'valid' .* it has: train, Test\."):
        load_annotations(root, "valid")


def test_a_split_that_is_given_as_the_root_names_its_parent(write_split, action):
    root = write_split({"0": action("0", CLIP)})
    with pytest.raises(AnnotationError, match=r"is itself a split .* name its parent .*data\."):
        load_annotations(root / "train", "train")


def test_two_folders_for_one_split_are_refused(write_split, action):
    write_split({"0": action("0", CLIP)}, "chall")
    root = write_split({"0": action("0", CLIP)}, "challenge")
    with pytest.raises(AnnotationError, match="has 'challenge' twice: chall, challenge"):
        load_annotations(root, "challenge")


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(AnnotationError, match="unknown split 'dev'; known: train, valid, test, challenge"):
        load_annotations(tmp_path, "dev")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"Actions": ', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[]", 'has no object "Actions"'),
        (b'{"actions": {}}', 'has no object "Actions"'),
        (b'{"Actions": []}', 'has no object "Actions"'),
        (b'{"Actions": {"0": 3}}', 'has no object "Actions" of objects'),
        (b'{"Actions": {}}', "has no action"),
    ],
)
def test_a_file_that_is_not_of_the_data_set_is_refused(tmp_path, content, message):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "annotations.json").write_bytes(content)
    with pytest.raises(AnnotationError, match=message):
        load_annotations(tmp_path, "train")


def test_a_split_of_which_nothing_is_left_says_why(load):
    with pytest.raises(AnnotationError, match="has no usable action") as caught:
        load(("0", "", "", ""), ("1", "Pushing", "Between", "1.0"))
    assert '1  offence is "Between"' in str(caught.value)


def test_class_counts_follow_the_vocabulary(load):
    annotations = load(KEPT, ("1", "Tackling", "No Offence", ""), ("2", "Dive", "", ""))
    action_counts = dict(zip(ACTION_CLASSES, annotations.class_counts("action"), strict=True))
    severity_counts = dict(zip(OFFENCE_SEVERITIES, annotations.class_counts("offence_severity"), strict=True))
    assert {k: v for k, v in action_counts.items() if v} == {"Tackling": 2, "Dive": 1}
    assert {k: v for k, v in severity_counts.items() if v} == {
        "Offence + Yellow card": 1,
        "No offence": 1,
        "Offence + No card": 1,
    }


@given(
    document=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["Actions", "Clips", "Url", "Offence", "Action class", "0"]), inner)
        ),
        max_leaves=12,
    )
)
@settings(max_examples=50, deadline=None)
def test_no_document_crashes_the_reader(tmp_path_factory, document):
    root = tmp_path_factory.mktemp("data")
    (root / "test").mkdir()
    (root / "test" / "annotations.json").write_text(json.dumps(document))
    with pytest.raises(AnnotationError):
        load_annotations(root, "test")


def test_the_real_sample_is_read(sample_root):
    annotations = load_annotations(sample_root, "test")
    assert [names(record) for record in annotations.records] == [
        ("Standing tackling", "Offence + Yellow card"),
        ("Tackling", "Offence + Yellow card"),
        ("Holding", "Offence + Yellow card"),
    ]
    assert annotations.view_counts() == {3: 3}
    assert annotations.clip_issues == ()
