from __future__ import annotations

import csv
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_mmpg.data.readers import (
    READERS,
    Names,
    clips_of_questions,
    fingerprint_files,
    read_aliases,
    read_captions,
    read_clips,
    read_questions,
    require_path,
    resolve_ids,
)
from lit_mmpg.data.readers.registry import _checked
from lit_mmpg.data.readers.tgif_qa import is_validation
from lit_mmpg.errors import UserError, collected
from lit_mmpg.records import Caption, Clip, Question

QA_HEADER = "video,question,answer,qid,type\n"
MC_HEADER = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
OE_HEADER = "video,frame_count,width,height,question,answer,qid,type\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def fails(match: str, function: Callable, *args: Any) -> str:
    with pytest.raises(UserError, match=match) as caught:
        function(*args)
    return str(caught.value)


# --- layouts -----------------------------------------------------------------------------------------------------


def test_qa_csv_reads_the_splits_that_exist(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", QA_HEADER + '7,what floats,boat,11,3\n8,"who, if anyone, sleeps",cat,12,4\n')
    write(tmp_path / "test.csv", QA_HEADER + "9,what rings,bell,13,\n")
    assert read_questions("qa_csv", tmp_path) == {
        "train": [
            Question("7", "what floats", "boat", "11", "3"),
            Question("8", "who, if anyone, sleeps", "cat", "12", "4"),
        ],
        "test": [Question("9", "what rings", "bell", "13", "")],
    }


def test_qa_csv_needs_no_type_and_accepts_a_byte_order_mark(tmp_path: Path) -> None:
    write(tmp_path / "val.csv", "\ufeffqid,answer,question,video\r\n1,kite,what flies,5\r\n")
    assert read_questions("qa_csv", tmp_path) == {"val": [Question("5", "what flies", "kite", "1")]}


def test_msrvtt_qa_json(tmp_path: Path) -> None:
    entries = [{"answer": "drum", "category_id": 14, "id": 501, "question": "what is hit?", "video_id": 6513}]
    write(tmp_path / "train_qa.json", json.dumps(entries))
    write(tmp_path / "val_qa.json", json.dumps([{**entries[0], "id": 502, "video_id": 6530}]))
    read = read_questions("msrvtt_qa", tmp_path)
    assert read["train"] == [Question("6513", "what is hit?", "drum", "501", "14")]
    assert [q.clip for q in read["val"]] == ["6530"]
    assert read_aliases("msrvtt_qa", tmp_path) == {}


def test_msvd_qa_json_and_its_mapping(tmp_path: Path) -> None:
    write(
        tmp_path / "test_qa.json",
        json.dumps([{"answer": "two", "id": 0, "question": "How many goats climb?", "video_id": 1302}]),
    )
    questions = read_questions("msvd_qa", tmp_path)["test"]
    assert questions == [Question("1302", "How many goats climb?", "two", "0", "how")]
    assert read_aliases("msvd_qa", tmp_path) == {}

    write(tmp_path / "youtube_mapping.txt", "a_b-C_1_9 vid1\nZz0_10_22 vid1302\n")
    aliases = read_aliases("msvd_qa", tmp_path)
    assert aliases == {"1": "a_b-C_1_9", "1302": "Zz0_10_22"}
    for known in ("Zz0_10_22", "vid1302", "1302", "video1302"):
        assert resolve_ids(questions, Names([known, "other"], aliases))[0].clip == known


def test_msvd_mapping_with_a_broken_line(tmp_path: Path) -> None:
    write(tmp_path / "youtube_mapping.txt", "abc_1_2 vid1\nabc_3_4\n")
    assert "youtube_mapping.txt, line 2" in fails("name vidN", read_aliases, "msvd_qa", tmp_path)


def test_nextqa_multiple_choice(tmp_path: Path) -> None:
    write(
        tmp_path / "val.csv",
        MC_HEADER + "401,369,640,480,why did the dog bark,3,6,CW,hungry,bored,cold,saw a cat,asleep\n",
    )
    assert read_questions("nextqa_mc", tmp_path) == {
        "val": [
            Question(
                "401",
                "why did the dog bark",
                "saw a cat",
                "401_6",
                "CW",
                ("hungry", "bored", "cold", "saw a cat", "asleep"),
                3,
            )
        ]
    }


@pytest.mark.parametrize("answer", ["5", "-1", "saw a cat", "1.0"])
def test_nextqa_answer_that_is_no_option(tmp_path: Path, answer: str) -> None:
    write(tmp_path / "val.csv", MC_HEADER + f"401,369,640,480,why did the dog bark,{answer},6,CW,a,b,c,d,e\n")
    assert f"'{answer}'" in fails(r"val\.csv, line 2: column 'answer'", read_questions, "nextqa_mc", tmp_path)


def test_nextqa_open_ended_numbers_repeated_ids(tmp_path: Path) -> None:
    write(
        tmp_path / "train.csv",
        OE_HEADER + "36,26,64,48,is it day,yes,1,DB\n36,26,64,48,where is it,park,1,DL\n37,9,64,48,who runs,boy,1,DO\n",
    )
    questions = read_questions("nextqa_oe", tmp_path)["train"]
    assert [(q.id, q.answer, q.type) for q in questions] == [
        ("36_1", "yes", "DB"),
        ("36_1#2", "park", "DL"),
        ("37_1", "boy", "DO"),
    ]
    assert all(q.options == () and q.correct == -1 for q in questions)


TGIF_OPTIONS = "gif_name\tquestion\ta1\ta2\ta3\ta4\ta5\tanswer\tvid_id\tkey\r\n"


def test_tgif_action_and_transition(tmp_path: Path) -> None:
    row = 'gif_x_400\tWhat does the "chef" do 3 times ?\tchop\tstir\tjump\tnod\twave\t2\tACTION7\t55\r\n'
    write(tmp_path / "Test_action_question.csv", TGIF_OPTIONS + row)
    write(tmp_path / "Test_transition_question.csv", TGIF_OPTIONS + row.replace("ACTION7", "TRANS9"))
    (question,) = read_questions("tgif_qa_action", tmp_path)["test"]
    assert question == Question(
        "gif_x_400",
        'What does the "chef" do 3 times ?',
        "jump",
        "ACTION7",
        "action",
        ("chop", "stir", "jump", "nod", "wave"),
        2,
    )
    assert read_questions("tgif_qa_transition", tmp_path)["test"][0].id == "TRANS9"
    aliases = read_aliases("tgif_qa_action", tmp_path)
    assert aliases == {"gif_x_400": "55"}
    assert resolve_ids([question], Names(["55", "56"], aliases))[0].clip == "55"


def test_tgif_frameqa_and_count(tmp_path: Path) -> None:
    write(
        tmp_path / "Test_frameqa_question.csv",
        "gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription\r\n"
        "gif_a\twhat is thrown ?\tball\t0\tFRAMEQA1\t27\ta ball is thrown .\r\n"
        "gif_a\twhat colour is it ?\tred\t2\tFRAMEQA2\t27\ta red ball .\r\n",
    )
    write(
        tmp_path / "Test_count_question.csv",
        "gif_name\tquestion\tanswer\tvid_id\tkey\r\ngif_b\tHow many times does the man hop ?\t4\tCOUNT1\t5\r\n",
    )
    assert [(q.answer, q.type, q.correct) for q in read_questions("tgif_qa_frameqa", tmp_path)["test"]] == [
        ("ball", "object", -1),
        ("red", "color", -1),
    ]
    assert read_questions("tgif_qa_count", tmp_path)["test"] == [
        Question("gif_b", "How many times does the man hop ?", "4", "COUNT1", "count")
    ]


def test_tgif_holds_out_a_tenth_of_the_training_gifs(tmp_path: Path) -> None:
    names = [f"gif_{i}" for i in range(1000)]
    rows = "".join(f"{n}\tHow often ?\t{k}\tCOUNT{n}{k}\t5\r\n" for n in names for k in (2, 3))
    write(tmp_path / "Train_count_question.csv", "gif_name\tquestion\tanswer\tvid_id\tkey\r\n" + rows)
    read = read_questions("tgif_qa_count", tmp_path)
    train, val = ({q.clip for q in read[split]} for split in ("train", "val"))
    assert not train & val
    assert train | val == set(names)
    assert 70 <= len(val) <= 130
    assert val == {name for name in names if is_validation(name)}
    assert len(read["train"]) == 2 * len(train)


def test_msrvtt_captions_and_clips(tmp_path: Path) -> None:
    content = {
        "info": {"year": "2016"},
        "videos": [
            {"category": 9, "url": "u", "video_id": "video0", "start time": 1.5, "end time": 9.0, "split": "train"},
            {"video_id": "video1", "split": "validate"},
        ],
        "sentences": [
            {"caption": "two otters float", "video_id": "video1", "sen_id": 1},
            {"caption": " a kettle boils ", "video_id": "video0", "sen_id": 0},
        ],
    }
    test = {"videos": [{"video_id": "video2", "split": "test"}], "sentences": []}
    write(tmp_path / "train_val_videodatainfo.json", json.dumps(content))
    write(tmp_path / "test_videodatainfo.json", json.dumps(test))
    captions = [Caption("video1", "two otters float"), Caption("video0", "a kettle boils")]
    assert read_captions("msrvtt_captions", tmp_path) == captions
    assert read_captions("msrvtt_captions", tmp_path / "train_val_videodatainfo.json") == captions
    assert read_clips(tmp_path) == [
        Clip("video0", "train", {"category": "9"}),
        Clip("video1", "val"),
        Clip("video2", "test"),
    ]
    assert "no captions" in fails(
        "test_videodatainfo", read_captions, "msrvtt_captions", tmp_path / "test_videodatainfo.json"
    )


def test_msrvtt_captions_of_a_wrong_shape(tmp_path: Path) -> None:
    file = write(tmp_path / "x.json", json.dumps({"videos": [{"video_id": "v", "split": "dev"}]}))
    fails("'sentences': a list", read_captions, "msrvtt_captions", file)
    fails("entry 1: split 'dev'", read_clips, file)
    write(file, "[]")
    fails("object with 'videos'", read_captions, "msrvtt_captions", file)


def test_captions_csv_both_forms(tmp_path: Path) -> None:
    captions = write(tmp_path / "captions.csv", 'video,caption\nvideo1,"a fox, a hen"\n')
    shots = write(tmp_path / "shots.csv", "video,shot,description\nvideo1,0,A fox waits.\nvideo1,1,A hen.\n")
    assert read_captions("captions_csv", captions) == [Caption("video1", "a fox, a hen")]
    assert read_captions("captions_csv", shots) == [
        Caption("video1", "A fox waits.", True),
        Caption("video1", "A hen.", True),
    ]
    other = write(tmp_path / "other.csv", "video,sentence\nvideo1,x\n")
    assert "found: video, sentence" in fails("column 'caption' is missing", read_captions, "captions_csv", other)


def test_clip_list_keeps_further_columns(tmp_path: Path) -> None:
    file = write(tmp_path / "videos.csv", "video,split,category,num_frames\nv1,train,,2\nv2,test,music,12\n")
    assert read_clips(file) == [
        Clip("v1", "train", {"category": "", "num_frames": "2"}),
        Clip("v2", "test", {"category": "music", "num_frames": "12"}),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("v1,training\n", "line 2: split 'training' is unknown"),
        ("v1,train\nv2,val\nv1,test\n", "line 4: video 'v1' is listed a second time"),
        ("", "no clips"),
    ],
)
def test_clip_list_faults(tmp_path: Path, rows: str, message: str) -> None:
    assert "videos.csv" in fails(message, read_clips, write(tmp_path / "videos.csv", "video,split\n" + rows))


# --- faults of files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "name", "text", "columns"),
    [
        ("qa_csv", "train.csv", "video,question,qid\n1,a,2\n", ("answer", "video, question, qid")),
        ("nextqa_oe", "train.csv", "video,question,answer,qid\n1,a,b,2\n", ("type", "video, question, answer, qid")),
        ("nextqa_mc", "val.csv", MC_HEADER.replace(",a4", "") + "\n", ("a4", "a0, a1, a2, a3")),
        ("tgif_qa_count", "Test_count_question.csv", "gif_name\tquestion\tvid_id\n", ("answer", "gif_name, question")),
        ("tgif_qa_action", "Test_action_question.csv", "gif_name\tquestion\tanswer\tvid_id\n", ("a1", "vid_id")),
    ],
)
def test_missing_column_names_file_column_and_columns_found(
    tmp_path: Path, layout: str, name: str, text: str, columns: tuple[str, str]
) -> None:
    write(tmp_path / name, text)
    message = fails(f"column '{columns[0]}' is missing", read_questions, layout, tmp_path)
    assert str(tmp_path / name) in message
    assert columns[1] in message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1,a,b,2,3\n1,a,b\n", "line 3: 3 fields where the header has 5"),
        ("1,a,b,2,3\n1,a,b,2,3,4\n", "line 3: 6 fields where the header has 5"),
        ('1,a,b,2,3\n1,"never closed,b,2,3\n1,c,d,5,3\n', "line 3: malformed row"),
        ("1,a,b,2,3\n\n1,,b,4,3\n", "line 4: column 'question' is blank"),
    ],
)
def test_malformed_row_names_file_and_line(tmp_path: Path, body: str, message: str) -> None:
    file = write(tmp_path / "train.csv", QA_HEADER + body)
    assert str(file) in fails(message, read_questions, "qa_csv", tmp_path)


def test_table_that_is_no_text_or_has_no_header(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(QA_HEADER.encode() + b"1,caf\xe9,b,2,3\n")
    fails("not UTF-8", read_questions, "qa_csv", tmp_path)
    write(tmp_path / "train.csv", "")
    fails("the file is empty", read_questions, "qa_csv", tmp_path)
    write(tmp_path / "train.csv", "video,video,question,answer,qid\n")
    fails("column 'video' occurs more than once", read_questions, "qa_csv", tmp_path)


@pytest.mark.parametrize("layout", ["msrvtt_qa", "msvd_qa"])
def test_truncated_or_incomplete_json(tmp_path: Path, layout: str) -> None:
    entry = {"answer": "drum", "category_id": 1, "id": 5, "question": "what is hit?", "video_id": 3}
    text = json.dumps([entry, entry], indent=1)
    file = write(tmp_path / "val_qa.json", text[:-20])
    message = fails("not valid JSON", read_questions, layout, tmp_path)
    assert f"{file}, line 1" in message and "truncated" in message
    write(file, json.dumps([entry, {k: v for k, v in entry.items() if k != "answer"}]))
    fails("entry 2: field 'answer' is missing", read_questions, layout, tmp_path)
    write(file, json.dumps([{**entry, "answer": None}]))
    fails("entry 1: field 'answer'", read_questions, layout, tmp_path)
    write(file, json.dumps({"questions": []}))
    fails("a list of entries", read_questions, layout, tmp_path)


def test_empty_split(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", QA_HEADER + "1,a,b,2,3\n")
    write(tmp_path / "val.csv", QA_HEADER)
    assert "train (1)" in fails("split 'val' is empty", read_questions, "qa_csv", tmp_path)


def test_missing_path_suggests_the_closest_name(tmp_path: Path) -> None:
    write(tmp_path / "msrvtt" / "questions" / "train.csv", QA_HEADER)
    message = fails("does not exist", read_questions, "qa_csv", tmp_path / "msrvt" / "questions")
    assert f"did you mean {tmp_path / 'msrvtt'}?" in message
    message = fails("does not exist", read_clips, tmp_path / "msrvtt" / "questions" / "trian.csv")
    assert message.endswith(f"did you mean {tmp_path / 'msrvtt' / 'questions' / 'train.csv'}?")
    message = fails("does not exist", require_path, tmp_path / "msrvtt" / "zzz", "data")
    assert "contains questions" in message


def test_folder_without_the_files_of_the_layout(tmp_path: Path) -> None:
    file = write(tmp_path / "trains.csv", QA_HEADER)
    message = fails("contains none of train.csv, val.csv, test.csv", read_questions, "qa_csv", tmp_path)
    assert str(file) in message
    fails("is a file, the folder", read_questions, "qa_csv", file)
    fails("is a folder", read_captions, "captions_csv", tmp_path)


def test_unknown_layout_suggests_a_known_one(tmp_path: Path) -> None:
    assert "did you mean 'nextqa_mc'" in fails("there is no layout", read_questions, "nextqa-mc", tmp_path)
    fails("there is no layout 'srt'", read_captions, "srt", tmp_path)
    fails("holds no questions; name it under captions", read_questions, "captions_csv", tmp_path)
    fails("holds no captions; name it under questions", read_captions, "qa_csv", tmp_path)


def test_layouts_on_an_empty_folder_are_user_errors(tmp_path: Path) -> None:
    for layout, reader in READERS.built_in.items():
        if reader.questions is not None:
            fails("contains none of", read_questions, layout, tmp_path)
        if reader.captions is not None:
            with pytest.raises(UserError):
                read_captions(layout, tmp_path)


# --- ids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("6513", {"6513", "video6513"}, "6513"),
        ("6513", {"video6513", "vid6513"}, "video6513"),
        ("12", {"vid12"}, "vid12"),
        ("video12", {"12"}, "12"),
        ("vid12", {"12"}, "12"),
        ("12", {"video120"}, "12"),
        ("video0.mp4", {"video0"}, "video0"),
        ("video0", {"video0.mp4"}, "video0.mp4"),
        ("video0.mp4.npy", {"video0"}, "video0"),
        ("0.0", {"video0", "video1"}, "video0"),
        ("day/Video0.MP4", {"video0"}, "video0"),
        ("video0", {"day/video0", "day/video1"}, "day/video0"),
        ("cafe\u0301.mp4", {"caf\xe9"}, "caf\xe9"),
        ("v1.2", {"v1"}, "v1.2"),
    ],
)
def test_resolve_id(name: str, known: set[str], expected: str) -> None:
    assert Names(known).find(name) == expected


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("bob/clip1", "alice/clip1", False),
        ("clip1.mp4", "alice/clip1", True),
        ("/data/alice/clip1.MP4", "alice/clip1", True),
        ("C:\\vids\\video1", "1", True),
        ("alice/clip1", "day/alice/clip1", True),
        ("alice/day/clip1", "alice/clip1", False),
    ],
)
def test_a_clip_of_another_folder_is_another_clip(name: str, known: str, found: bool) -> None:
    assert (Names({known}).find(name) == known) == found


JSON_FAULTS = {
    '{"sentences": [], "sentences": []}': "key 'sentences' is given twice",
    '{"sentences": [{"video_id": "a", "caption": "x", "caption": "y"}]}': "key 'caption' is given twice",
    '{"sentences": [{"video_id": "a", "caption": "\\ud83d"}]}': "half a character",
    '{"sentences": [{"video_id": "\\udc00a", "caption": "x"}]}': "half a character",
    '{"sentences": [{"video_id": ' + 5000 * "1" + ', "caption": "x"}]}': "no annotation looks like this",
    100_000 * "[": "no annotation looks like this",
}


@pytest.mark.parametrize("text", JSON_FAULTS, ids=lambda text: JSON_FAULTS[text][:20])
def test_json_that_would_be_misread(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(UserError, match=rf"c\.json: .*{JSON_FAULTS[text]}"):
        read_captions("msrvtt_captions", tmp_path / "c.json")


def test_whole_emoji_in_json_are_fine(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"sentences": [{"video_id": "a", "caption": "\\ud83d\\ude00"}]}')
    assert read_captions("msrvtt_captions", tmp_path / "c.json")[0].text == "\U0001f600"


@pytest.mark.parametrize(
    ("category", "found"), [("null", ""), ("NaN", ""), ("3", "3"), ('["a", "b"]', "a, b"), ('{"a": 1}', None)]
)
def test_a_category_is_a_text_a_number_or_unknown(tmp_path: Path, category: str, found: str | None) -> None:
    (tmp_path / "c.json").write_text(f'{{"videos": [{{"video_id": "a", "split": "train", "category": {category}}}]}}')
    if found is None:
        with pytest.raises(UserError, match="entry 1: field 'category' is"):
            read_clips(tmp_path / "c.json")
    else:
        assert read_clips(tmp_path / "c.json")[0].columns == {"category": found}


def test_lists_in_the_columns_of_a_clip_list_do_not_vanish(tmp_path: Path) -> None:
    values = (["a", " b "], {"a": [1]}, float("nan"), None, 1.5)
    rows = [{"video": f"v{i}", "split": "train", "category": value} for i, value in enumerate(values)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = [clip.columns["category"] for clip in read_clips(tmp_path / "c.jsonl")]
    assert found == ["a|b", '{"a": [1]}', "", "", "1.5"]


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nvideo;caption\na;x\n",
        "sep=;\nvideo;shot;description\na;1;x\n",
        "video,caption,,\na,x,,\n",
        '"sep=,"\r\nvideo,caption\r\na,x\r\n',
    ],
)
def test_tables_of_excel(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.csv").write_bytes(text.encode())
    (caption,) = read_captions("captions_csv", tmp_path / "c.csv")
    assert (caption.clip, caption.text) == ("a", "x")


@pytest.mark.parametrize("text", ["video,caption\na,b\0c\n", "video,caption\n" + 9 * "\0", "video,caption"])
def test_files_with_nul_are_no_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.csv").write_bytes(text.encode("utf-8" if "\n" in text else "utf-16-le"))
    line = 2 if "\n" in text else 1
    fails(f"c.csv, line {line}: not UTF-8 text \\(it holds NUL", read_captions, "captions_csv", tmp_path / "c.csv")


def test_json_lines_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"video": "a", "caption": "x"}\n')
    assert [(c.clip, c.text) for c in read_captions("captions_csv", tmp_path / "c.jsonl")] == [("a", "x")]


def test_what_would_be_waited_for_is_not_read(tmp_path: Path) -> None:
    os.mknod(tmp_path / "c.csv", stat.S_IFSOCK | 0o600)
    fails("c.csv: is a pipe, a socket or a device", read_clips, tmp_path / "c.csv")


def test_a_number_of_an_option_of_thousands_of_digits(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("video,question,answer,qid,options\na,q," + 5000 * "1" + ",1,x|y\n")
    with pytest.raises(UserError, match="none of the options"):
        read_questions("qa_csv", tmp_path)


def test_a_spelling_that_fits_two_clips_is_refused() -> None:
    fails("'x.mp4' may be any of 'a/x', 'b/x'", Names(dict.fromkeys(["a/x", "b/x"])).find, "x.mp4")


def test_resolve_ids_keeps_everything_else() -> None:
    question = Question("7", "who", "ann", "1", "x", ("ann", "bob"), 0)
    caption = Caption("7", "ann walks", True)
    known = Names(["video7", "video8"])
    assert resolve_ids([question], known) == [Question("video7", "who", "ann", "1", "x", ("ann", "bob"), 0)]
    assert resolve_ids([caption], known) == [Caption("video7", "ann walks", True)]
    assert resolve_ids([Clip("7", "val", {"a": "b"})], known) == [Clip("video7", "val", {"a": "b"})]


def test_clips_of_questions() -> None:
    questions = {"train": [Question("a", "q", "x", "1"), Question("a", "r", "y", "2")], "val": []}
    assert clips_of_questions(questions) == [Clip("a", "train")]
    questions["val"] = [Question("a", "q", "x", "1")]
    fails("'a' has questions in 'train' and in 'val'", clips_of_questions, questions)
    questions["val"] = [Question("a.MP4", "q", "x", "1")]
    fails("'a.MP4' has questions in 'train' and in 'val'", clips_of_questions, questions)


TEXT = st.text(st.characters(blacklist_categories=["Cc", "Cs"]), min_size=1).map(str.strip).filter(bool)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=5))
def test_qa_csv_round_trip(rows: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / "train.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["video", "question", "answer", "qid"])
            writer.writerows([*row, i] for i, row in enumerate(rows))
        read = read_questions("qa_csv", folder)["train"]
    assert [(q.clip, q.text, q.answer) for q in read] == rows


def test_lists_lines_and_encodings(tmp_path: Path) -> None:
    """A list is several captions or a fault, never its text; only newlines end a line; JSON Lines are a list."""
    file = write(tmp_path / "c.json", json.dumps({"sentences": [{"video_id": "v", "caption": ["a\u2028b", "c"]}]}))
    assert [c.text for c in read_captions("msrvtt_captions", file)] == ["a\u2028b", "c"]
    write(file, json.dumps({"sentences": [{"video_id": ["v"], "caption": "c"}]}))
    fails("entry 1: field 'video_id' is a list, one text is needed", read_captions, "msrvtt_captions", file)
    entries = [{"answer": f"a{i}", "id": i, "question": "who is?", "video_id": i} for i in range(2)]
    write(tmp_path / "train_qa.json", "\n".join(map(json.dumps, entries)))
    assert [q.answer for q in read_questions("msvd_qa", tmp_path)["train"]] == ["a0", "a1"]
    write(tmp_path / "train_qa.json", json.dumps([{**entries[0], "answer": {"text": "a"}}]))
    fails("field 'answer' is an object", read_questions, "msvd_qa", tmp_path)
    assert read_captions("msvd_captions", write(tmp_path / "c.txt", "v_1_2 one\x85two\u2028three\r\nv_3_4 x\n")) == [
        Caption("v_1_2", "one\x85two\u2028three"),
        Caption("v_3_4", "x"),
    ]
    write(tmp_path / "c.jsonl", '{"video": "v", "caption": ["a", "b"]}\n{"video": 0.0, "caption": "c"}\n')
    assert read_captions("captions_csv", tmp_path / "c.jsonl") == [Caption(*c) for c in ("va", "vb", ("0.0", "c"))]
    write(
        tmp_path / "l.jsonl", '{"video": "v", "split": "val", "owner": 3}\n{"video": "w", "split": "test", "x": [1]}\n'
    )
    assert read_clips(tmp_path / "l.jsonl") == [Clip("v", "val", {"owner": "3"}), Clip("w", "test", {"x": "1"})]
    write(tmp_path / "train.csv", QA_HEADER.replace(",", ";") + "v;who\x85is;a\u2028b;1;x\n")
    assert read_questions("qa_csv", tmp_path)["train"] == [Question("v", "who\x85is", "a\u2028b", "1", "x")]
    (tmp_path / "train.csv").write_bytes(b"\xff\xfev\0")
    fails("UTF-16; save it as UTF-8", read_questions, "qa_csv", tmp_path)


def test_a_report_has_every_fault_of_every_file(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", QA_HEADER + "v,,a,1,x\nv,q,a\nv,q,a,2,x\n")
    write(tmp_path / "val.csv", "video,question\n")
    write(tmp_path / "test.csv", QA_HEADER + "w,q,,3,x\nw,q,a,4,x\n")
    with pytest.raises(UserError) as caught, collected():
        read_questions("qa_csv", tmp_path)
    said = str(caught.value)
    assert said.startswith("4 problems:"), said
    for part in (
        "line 2: column 'question'",
        "line 3: 3 fields",
        "column 'answer' is missing",
        "column 'qid'",
        "test.csv",
    ):
        assert part in said


# --- fingerprint -------------------------------------------------------------------------------------------------


def test_fingerprint_depends_on_names_and_content_only(tmp_path: Path) -> None:
    def make(root: Path) -> list[Path]:
        write(root / "qa" / "train.csv", "one")
        write(root / "qa" / "val.csv", "two")
        return [write(root / "videos.csv", "three"), root / "qa"]

    here, there = make(tmp_path / "here"), make(tmp_path / "far" / "there")
    first = fingerprint_files(here)
    assert first == fingerprint_files(there) == fingerprint_files(there[::-1])
    assert len(first) == 64
    seen = {first}
    for change in (
        lambda: write(there[1] / "train.csv", "onf"),
        lambda: (write(there[1] / "train.csv", "onet"), write(there[1] / "val.csv", "wo")),
        lambda: (there[1] / "val.csv").rename(there[1] / "test.csv"),
        lambda: (there[1] / "test.csv").unlink(),
    ):
        change()
        seen.add(fingerprint_files(there))
    assert len(seen) == 5
    fails("does not exist", fingerprint_files, [tmp_path / "nowhere"])


# --- the package -------------------------------------------------------------------------------------------------


def test_readers_features_and_vocabulary_import_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['lightning'] = None\n"
        "import lit_mmpg.data.readers, lit_mmpg.data.features, lit_mmpg.data.vocabulary"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif("LIT_MMPG_DATA" not in os.environ, reason="LIT_MMPG_DATA does not name the folder of real data")
def test_real_msrvtt() -> None:
    root = Path(os.environ["LIT_MMPG_DATA"]) / "msrvtt"
    clips = {clip.id: clip for clip in read_clips(root / "videos.csv")}
    by_split = read_questions("qa_csv", root / "qa")
    captions = resolve_ids(read_captions("captions_csv", root / "captions.csv"), Names(clips))
    shots = resolve_ids(read_captions("captions_csv", root / "shot_descriptions.csv"), Names(clips))
    assert [sum(clip.split == s for clip in clips.values()) for s in ("train", "val", "test")] == [3326, 201, 335]
    assert {split: len(questions) for split, questions in by_split.items()} == {
        "train": 20266,
        "val": 4983,
        "test": 8451,
    }
    for split, questions in by_split.items():
        assert {clips[q.clip].split for q in resolve_ids(questions, Names(clips))} == {split}
        assert len({q.id for q in questions}) == len(questions)
    assert len({c.clip for c in captions}) == len(captions) == len(clips)
    assert len(shots) == 5459 and all(c.extra and c.clip in clips for c in shots)


def test_msvd_captions(tmp_path: Path) -> None:
    file = tmp_path / "AllVideoDescriptions.txt"
    file.write_text("# of 1970 clips\n\n-4wsuPCjDBc_5_15 a squirrel eats a peanut\n-4wsuPCjDBc_5_15 an animal\n")
    captions = read_captions("msvd_captions", file)
    assert [(c.clip, c.text) for c in captions] == [
        ("-4wsuPCjDBc_5_15", "a squirrel eats a peanut"),
        ("-4wsuPCjDBc_5_15", "an animal"),
    ]
    file.write_text("clip_1_2 good\nclip_2_3\n")
    with pytest.raises(UserError, match=r"line 2.*no sentence"):
        read_captions("msvd_captions", file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": 3}, "answer of a Question is 3, where a text is needed"),
        ({"answer": " "}, "answer of a Question is ' '"),
        ({"clip": None}, "clip of a Question is None"),
        ({"options": ("a", 2)}, "not all of Question.* is text"),
        ({"options": ("b", "a")}, r"options\[correct\] of Question.* is not its answer"),
        ({"options": ("b", "a"), "correct": 0}, r"options\[correct\] of Question.* is not its answer"),
        ({"options": "ab", "correct": 0}, r"options\[correct\] of Question.* options are a tuple"),
    ],
)
def test_records_of_another_package_hold_texts(change: dict[str, object], said: str) -> None:
    fields = {"clip": "c", "text": "what", "answer": "a", "id": "0"}
    rows = _checked("questions", {"train": [Question(**fields)]})
    assert rows == {"train": [Question(**fields)]}
    with pytest.raises(TypeError, match=said):
        _checked("questions", {"train": [Question(**fields | change)]})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"text of a Caption is 5"):
        _checked("captions", [Caption("c", 5)])  # type: ignore[arg-type]
