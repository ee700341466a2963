import itertools
import json
import random
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from training import batch_sizes
from training.data import lengths
from training.data.batches import IGNORED, Collator, evaluation_batches, predicted, training_batches
from training.data.listing import find
from training.data.order import Order
from training.data.texts import HANDLES, Reader, Streamed, Texts, prepare
from training.distributed import World
from training.errors import AccessDeniedError, UserError
from training.settings import Settings
from training.signals import Stop
from training.storage import Folder

ALONE = World(rank=0, size=1, local_rank=0, node=0, gpu=False, stop=Stop())


def processes(size):
    return [World(rank=rank, size=size, local_rank=rank, node=0, gpu=False, stop=Stop()) for rank in range(size)]


def texts(tmp_path, content, field="text"):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Texts(Reader("file:///", field), ["rows.jsonl"], [path])


def rows(*values):
    return "".join(json.dumps({"text": value}) + "\n" for value in values)


def prepared(uri, directory, streams=None, **settings):
    directory.mkdir()
    return prepare(uri, find(uri), Settings(**settings), directory, ALONE, streams=streams)


@pytest.mark.parametrize("streaming", [False, True])
def test_one_object(tmp_path, streaming):
    (tmp_path / "one.jsonl").write_text(rows("a"))
    (tmp_path / "one.jsonl.2").write_text(rows("b"))
    assert list(prepared(f"file://{tmp_path}/one.jsonl", tmp_path / "here", streaming=streaming)) == ["a"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_prefix_is_all_its_objects_in_order(tmp_path, streaming):
    shards = tmp_path / "shards"
    (shards / "deeper").mkdir(parents=True)
    for name, values in {"b.jsonl": "23", "a.jsonl": "1", "blank.jsonl": [""], "deeper/c.jsonl": "4"}.items():
        (shards / name).write_text(rows(*values))
    (shards / "_year=2024").mkdir()
    (shards / "_year=2024/0.jsonl").write_text(rows("0"))
    for hidden in ["_SUCCESS", ".ipynb_checkpoints/a.jsonl", "deeper/_temporary/0/part-0"]:
        (shards / hidden).parent.mkdir(parents=True, exist_ok=True)
        (shards / hidden).write_text("not JSON")
    (shards / "empty.jsonl").write_text("")
    found = prepared(f"file://{shards}/", tmp_path / "here", streaming=streaming)
    assert isinstance(found, Streamed) is streaming
    assert [found[number] for number in range(len(found))] == ["0", "1", "2", "3", "4"]
    assert [found[number] for number in (4, 1, 3)] == ["4", "1", "3"]


def test_many_objects_are_read_with_few_descriptors(tmp_path):
    """After a report of a data set of 1,500 objects, under a limit of 1,024 descriptors."""
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(1500):
        (shards / f"{number:04d}").write_text(rows(str(number)))
    found = prepared(f"file://{shards}/", tmp_path / "here")
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert [found[number] for number in range(1500)] == [str(number) for number in range(1500)]
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= HANDLES
    assert [found[number] for number in (0, 1499, 0)] == ["0", "1499", "0"]


def test_a_text_with_a_token_that_the_model_lacks_is_named_by_its_line(tmp_path):
    (tmp_path / "one.jsonl").write_text(rows("a", "with <image> in it"))
    uri = f"file://{tmp_path}/one.jsonl"
    with pytest.raises(UserError, match=r"one.jsonl, line 2: it has the token '<image>', for which the model has no"):
        prepare(uri, find(uri), Settings(), tmp_path, ALONE, ["<image>"])


def test_a_prefix_of_hidden_objects_says_so(tmp_path):
    (tmp_path / "data/_train").mkdir(parents=True)
    (tmp_path / "data/_train/0.jsonl").write_text(rows("a"))
    with pytest.raises(UserError, match=r"holds no objects but 1 hidden objects, such as _train/0\.jsonl$"):
        prepared(f"file://{tmp_path}/data/", tmp_path / "here")


def test_large_data_are_streamed_where_each_process_can_have_an_object(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_text(rows("a"))
    assert isinstance(prepared(f"file://{tmp_path}/data/", tmp_path / "small"), Texts)
    monkeypatch.setattr("training.data.texts.STREAMED", 1)
    assert isinstance(prepared(f"file://{tmp_path}/data/", tmp_path / "large"), Streamed)


def test_what_is_streamed_is_on_disk_for_a_while_only(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(6):
        (shards / str(number)).write_text(rows(*f"{number}abc"))
    found = prepared(f"file://{shards}/", tmp_path / "here", streaming=True)
    assert list((tmp_path / "here").iterdir()) == [], "what was counted is gone"
    for number in range(len(found)):
        assert found[number]
        assert len(list((tmp_path / "here").iterdir())) <= 2


@pytest.mark.parametrize("uri", ["none.jsonl", "none/", "shards"])
def test_what_is_not_there_is_named(tmp_path, uri):
    with pytest.raises(UserError, match=f"DATASET_URI.*{uri}"):
        prepared(f"file://{tmp_path}/{uri}", tmp_path / "here")


def test_one_object_need_not_be_listed(tmp_path, monkeypatch):
    (tmp_path / "one.jsonl").write_text(rows("a"))
    monkeypatch.setattr(Folder, "list", denied)
    assert list(prepared(f"file://{tmp_path}/one.jsonl", tmp_path / "here")) == ["a"]
    with pytest.raises(UserError, match=r"^DATASET_URI .*/ may not be listed by this job: access denied$"):
        prepared(f"file://{tmp_path}/", tmp_path / "there")


def denied(*_):
    raise AccessDeniedError("key")


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "one.jsonl").write_text(rows("a"))
    monkeypatch.setattr(Folder, "download", denied)
    with pytest.raises(UserError, match=r"^DATASET_URI may not be read by this job: access to file://.*/ is denied$"):
        prepared(f"file://{tmp_path}/one.jsonl", tmp_path / "here")


def test_lines_are_read_by_number(tmp_path):
    found = texts(tmp_path, rows("eins", "zwei — drei", "vier"))
    assert [found[2], found[1], found[0]] == ["vier", "zwei — drei", "eins"]


def test_empty_texts_and_lines_are_left_out(tmp_path):
    found = texts(tmp_path, rows("a", "", " \n") + "\n\r\n" + rows("b").rstrip("\n"))
    assert [found[number] for number in range(len(found))] == ["a", "b"]


BAD = pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "b"', "not JSON"),
        ('{"body": "b"}', "'text'"),
        ('{"text": 5}', "'text'"),
        ('["text"]', "a list, where each text has to be in an object"),
        (b'{"text": "\xff"}', "not JSON"),
        pytest.param('{"text": ' + 9999 * "[" + 9999 * "]" + "}", "not JSON", id="nested"),
        (r'{"text": "the \ud83d model"}', r"\\ud83d at character 5 is half of a character"),
    ],
)


@BAD
@pytest.mark.parametrize("streaming", [False, True])
def test_a_bad_line_is_named_before_training(tmp_path, line, says, streaming):
    line = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "rows.jsonl").write_bytes(rows("a").encode() + line + b"\n" + rows("c").encode())
    with pytest.raises(UserError, match=rf"rows\.jsonl, line 2: .*{says}"):
        prepared(f"file://{tmp_path}/rows.jsonl", tmp_path / "here", streaming=streaming)


def test_another_field_can_hold_the_text(tmp_path):
    assert texts(tmp_path, '{"body": "b"}', field="body")[0] == "b"


@pytest.mark.parametrize("streaming", [False, True])
def test_no_texts_at_all_is_an_error(tmp_path, streaming):
    (tmp_path / "rows").write_text(rows(""))
    with pytest.raises(UserError, match="DATASET_URI"):
        prepared(f"file://{tmp_path}/rows", tmp_path / "here", streaming=streaming)


# === their order ===


def settled(size, **given):
    """The settings as so many processes use them."""
    settings = Settings(**given)
    return batch_sizes.complete(settings, batch_sizes.choose(settings, "", size, None))


@pytest.mark.parametrize("micro_batch", [1, 3, 16])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_step_has_the_same_texts_however_they_are_shared(many, size, micro_batch):
    """Also where the processes do not divide them: nobody's is left out, and nobody has one twice."""
    settings = settled(size, global_batch_size=16, batch_size=micro_batch)
    orders = [Order(many, settings, world) for world in processes(size)]
    for step in range(20):
        micro_steps = range(settings.gradient_accumulation)
        shares = [[text for micro in micro_steps for text in order.batch(step, micro)] for order in orders]
        assert sum(map(len, shares)) == 16
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert all(len(order.batch(step, micro)) <= micro_batch for order in orders for micro in micro_steps)
        alone = Order(many, settled(1, global_batch_size=16, batch_size=16), ALONE)
        assert [text for share in shares for text in share] == alone.batch(step, 0)


@pytest.fixture(params=[0, 1, 3, 7], ids=["on disk", "streamed", "in 3 streams", "in 7 streams"])
def many(request, tmp_path):
    """97 texts in 7 objects of many sizes."""
    chance = random.Random(3)
    cuts = [0, *sorted(chance.sample(range(1, 97), 6)), 97]
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, (begin, end) in enumerate(itertools.pairwise(cuts)):
        (folder / str(number)).write_text(rows(*(f"text {text}" for text in range(begin, end))))
    return prepared(f"file://{folder}/", tmp_path / "here", request.param)


def test_a_batch_does_not_depend_on_what_came_before(many):
    settings = settled(2, batch_size=3, gradient_accumulation=2, max_steps=60)
    for world in processes(2):
        straight = list(Order(many, settings, world).rest(0, 60))
        assert len(straight) == 120
        assert all(len(batch) == 3 for batch in straight)
        for step in (1, 17, 59):
            assert list(Order(many, settings, world).rest(step, 60)) == straight[2 * step :]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_epoch_has_every_text(many, size):
    orders = [Order(many, settled(size, batch_size=4), world) for world in processes(size)]
    texts = [text for step in range(3 * 97) for order in orders for text in order.batch(step, 0)]
    for epoch in range(3):
        assert sorted(texts[97 * epoch :][:97]) == list(range(97)), "each once, and then the next epoch"


@pytest.mark.parametrize(("size", "open_at_once"), [(4, 1), (2, 2), (1, 4), (8, 1)])
def test_a_process_reads_few_objects_at_a_time(tmp_path, size, open_at_once):
    """In 4 streams, with the 4 processes that began it and with others: 12 objects of 32 texts, and steps of 16."""
    (tmp_path / "shards").mkdir()
    for number in range(12):
        (tmp_path / "shards" / f"{number:02d}").write_text(rows(*(f"{number} {text}" for text in range(32))))
    found = prepared(f"file://{tmp_path}/shards/", tmp_path / "here", 4)
    for world in processes(size):
        order = Order(found, settled(size, global_batch_size=16, batch_size=16 // size), world)
        of_steps = [{text // 32 for text in order.batch(step, 0)} for step in range(24)]
        assert max(map(len, of_steps)) == open_at_once
        assert len(set.union(*of_steps)) == max(3, 12 // size), "of its share of them, in an epoch"


def test_each_epoch_seed_and_process_has_its_own(many):
    def order(seed=1, rank=0):
        return Order(many, settled(2, batch_size=4, seed=seed), processes(2)[rank])

    steps = 13
    first = [order().batch(step, 0) for step in range(steps)]
    assert first == [order().batch(step, 0) for step in range(steps)]
    for other in (
        [order().batch(step, 0) for step in range(steps, 2 * steps)],
        [order(seed=2).batch(step, 0) for step in range(steps)],
        [order(rank=1).batch(step, 0) for step in range(steps)],
    ):
        assert other != first


def test_steps_of_so_many_epochs(tmp_path):
    found = texts(tmp_path, rows(*"abcdefghij"))
    for settings, steps in [
        ({}, 3),  # 10 texts are 3 batches of 4
        ({"num_epochs": 3}, 8),
        ({"num_epochs": 2, "gradient_accumulation": 4}, 2),
        ({"num_epochs": 0.1}, 1),
        ({"num_epochs": 3, "global_batch_size": 10}, 3),
        ({"max_steps": 77}, 77),
    ]:
        order = Order(found, settled(1, **settings), ALONE)
        assert order.steps(Settings(**settings)) == steps
    assert order.epochs(5) == 2.0


@pytest.mark.parametrize("size", [1, 3])
def test_what_is_evaluated_is_never_trained_on(many, size):
    settings = settled(size, batch_size=4, eval_steps=5)
    orders = [Order(many, settings, world) for world in processes(size)]
    trained = {text for order in orders for step in range(400) for text in order.batch(step, 0)}
    held_out = set(orders[0].held_out)
    assert held_out
    assert trained == set(range(97)) - held_out
    evaluated = [list(order.evaluation()) for order in orders]
    assert len({len(batches) for batches in evaluated}) == 1, "as many for each process"
    counted = [text for batches in evaluated for batch, filling in batches if not filling for text in batch]
    assert sorted(counted) == sorted(held_out)


def test_without_another_text_there_is_no_evaluation(tmp_path):
    with pytest.raises(UserError, match="eval_steps"):
        Order(texts(tmp_path, rows("a")), settled(1, eval_steps=1), ALONE)


def test_filled_up_batches_count_nothing(tmp_path, model_dir):
    found = texts(tmp_path, rows(*(f"text {number}" for number in range(100))))
    collator = Collator(AutoTokenizer.from_pretrained(model_dir / "tiny"), 64)
    orders = [Order(found, settled(3, batch_size=4, eval_steps=1), world) for world in processes(3)]
    counted = [[predicted(batch) for batch in evaluation_batches(found, order, collator)] for order in orders]
    assert [len(counts) for counts in counted] == [1, 1, 1]
    assert [bool(counts[0]) for counts in counted] == [True, True, False], "5 texts are 2 batches"


# === batches ===


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
    assert predicted(batch) == mask.sum() - 2, "not the first token of each"


def test_a_rendered_text_has_one_begin_and_one_end(model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir / "tiny", add_bos_token=True)
    tokenizer.add_bos_token = True
    plain, rendered = (Collator(tokenizer, 64)([text])["input_ids"].tolist() for text in ("the", "<s>the</s>"))
    assert plain == rendered
    assert plain[0].count(tokenizer.bos_token_id) == plain[0].count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("text", ["the", "the</s>", "<s>the", "<s><s><s>the</s></s></s>"])
def test_a_template_that_adds_both_makes_no_second_one(model_dir, text):
    tokenizer = AutoTokenizer.from_pretrained(model_dir / "tiny")
    begin, end = (("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id))
    for single in ("<s> $A </s>", "$A"):
        template = TemplateProcessing(single=single, special_tokens=[begin, end])
        tokenizer.backend_tokenizer.post_processor = template
        row = Collator(tokenizer, 64)([text])["input_ids"][0].tolist()
        assert row.count(tokenizer.eos_token_id) == 1 == (row[-1] == tokenizer.eos_token_id), single
        assert row.count(tokenizer.bos_token_id) == ("<s>" in single + text), single


def test_a_long_text_is_cut_without_an_end_and_without_changing_the_tokenizer(model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir / "tiny")
    before = tokenizer.backend_tokenizer.to_str()
    batch = Collator(tokenizer, 8)(["the model reads " * 100])
    assert batch["input_ids"].shape == (1, 8)
    assert tokenizer.eos_token_id not in batch["input_ids"]
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(many, model_dir, workers):
    collator = Collator(AutoTokenizer.from_pretrained(model_dir / "tiny"), 64)
    settings = settled(1, batch_size=3, dataloader_workers=workers)
    assert many[0] == "text 0", "and they do not share its open file"
    found = list(training_batches(many, Order(many, settings, ALONE), collator, settings, ALONE, 3, 40))
    order = Order(many, settings, ALONE)
    expected = [collator([many[number] for number in order.batch(step, 0)]) for step in range(3, 40)]
    assert len(found) == 37
    assert all((one["input_ids"] == other["input_ids"]).all() for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_cut_off_is_counted(tmp_path, model_dir, monkeypatch, streaming):
    (tmp_path / "data").mkdir()
    for number in range(3):
        (tmp_path / f"data/{number}").write_text(rows(*["the river"] * 9, "the river " * 40))
    found = prepared(f"file://{tmp_path}/data/", tmp_path / "here", streaming=streaming)
    collator = Collator(AutoTokenizer.from_pretrained(model_dir / "tiny"), 16)
    short, long = collator.lengths(["the river", "the river " * 40])
    assert short <= 16 < long
    counted = lengths.measure(found, collator, ALONE)
    texts = 10 if streaming else 30  # of one object
    assert (counted.texts, counted.cut_texts, counted.whole) == (texts, texts // 10, not streaming)
    assert (counted.tokens, counted.cut_tokens) == (texts // 10 * (9 * short + long), texts // 10 * (long - 16))
    share = (long - 16) / (9 * short + long)
    assert counted.share == pytest.approx(share)
    if not streaming:
        assert counted.sentence(16) == (
            f"max_seq_len 16 cuts 3 of 30 texts, and {share:.1%} of all tokens are not trained on"
        )
    monkeypatch.setattr(lengths, "TEXTS", 8)
    some = lengths.measure(found, collator, ALONE)
    assert (some.texts, some.whole) == (8, False)
    assert "(of 8 texts that were counted)" in some.sentence(16)
    monkeypatch.setattr(lengths, "CHARACTERS", 0)
    assert lengths.measure(found, collator, ALONE).texts == 0
