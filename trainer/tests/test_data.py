import json

import pytest
from transformers import AutoTokenizer

from training.data import IGNORED, Collator, Texts, download
from training.errors import UserError


def texts(tmp_path, content, field="text"):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Texts("file:///rows.jsonl", [path], field)


def rows(*values):
    return "".join(json.dumps({"text": value}) + "\n" for value in values)


def test_one_object(tmp_path):
    (tmp_path / "one.jsonl").write_text(rows("a"))
    (tmp_path / "other.jsonl").write_text(rows("b"))
    paths = download(f"file://{tmp_path}/one.jsonl", tmp_path / "here")
    assert list(Texts("uri", paths, "text")) == ["a"]


def test_a_prefix_is_all_its_objects_in_order(tmp_path):
    shards = tmp_path / "shards"
    (shards / "deeper").mkdir(parents=True)
    for name, value in {"b.jsonl": "2", "a.jsonl": "1", "deeper/c.jsonl": "3"}.items():
        (shards / name).write_text(rows(value))
    (shards / "_SUCCESS").write_text("not JSON")
    (shards / "empty.jsonl").write_text("")
    paths = download(f"file://{shards}/", tmp_path / "here")
    found = Texts("uri", paths, "text")
    assert [found[number] for number in range(len(found))] == ["1", "2", "3"]


@pytest.mark.parametrize("uri", ["none.jsonl", "none/", "shards"])
def test_what_is_not_there_is_named(tmp_path, uri):
    with pytest.raises(UserError, match=f"DATASET_URI.*{uri}"):
        download(f"file://{tmp_path}/{uri}", tmp_path / "here")


def test_lines_are_read_by_number(tmp_path):
    found = texts(tmp_path, rows("eins", "zwei — drei", "vier"))
    assert [found[2], found[1], found[0]] == ["vier", "zwei — drei", "eins"]


def test_empty_texts_and_lines_are_left_out(tmp_path):
    found = texts(tmp_path, rows("a", "", " \n") + "\n\r\n" + rows("b").rstrip("\n"))
    assert [found[number] for number in range(len(found))] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "b"', "not JSON"),
        ('{"body": "b"}', "'text'"),
        ('{"text": 5}', "'text'"),
        ('["text"]', "'text'"),
        (b'{"text": "\xff"}', "not JSON"),
    ],
)
def test_a_bad_line_is_named_before_training(tmp_path, line, says):
    line = line if isinstance(line, bytes) else line.encode()
    with pytest.raises(UserError, match=rf"rows\.jsonl, line 2: .*{says}"):
        texts(tmp_path, rows("a").encode() + line + b"\n" + rows("c").encode())


def test_another_field_can_hold_the_text(tmp_path):
    assert texts(tmp_path, '{"body": "b"}', field="body")[0] == "b"


def test_no_texts_at_all_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no texts"):
        texts(tmp_path, rows(""))


def test_padding_never_counts(model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir / "tiny")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id, "the case that a mask by token would get wrong"
    batch = Collator(tokenizer, 64)(["the model reads", "a b c d e f g h i j k l"])
    mask = batch["attention_mask"].bool()
    assert mask[0].sum() < mask[1].sum() == mask.shape[1]
    assert (batch["labels"][~mask] == IGNORED).all()
    assert (batch["labels"][mask] == batch["input_ids"][mask]).all()
    ends = [batch["labels"][row][mask[row]][-1] for row in (0, 1)]
    assert ends == [tokenizer.eos_token_id] * 2, "a text's end is learnt"


def test_a_long_text_is_cut_without_an_end_and_without_changing_the_tokenizer(model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir / "tiny")
    before = tokenizer.backend_tokenizer.to_str()
    batch = Collator(tokenizer, 8)(["the model reads " * 100])
    assert batch["input_ids"].shape == (1, 8)
    assert tokenizer.eos_token_id not in batch["input_ids"]
    assert tokenizer.backend_tokenizer.to_str() == before
