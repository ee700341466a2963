import json

import pytest

from training import settings
from training.errors import UserError


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({}, "batch_size", 4),
        ({"max_steps": 5}, "max_steps", 5),
        ({"lr": 1}, "lr", 1.0),
        ({"num_epochs": 0.5}, "num_epochs", 0.5),
        ({"gradient_accumulation_steps": 3}, "gradient_accumulation", 3),
        ({"keep_last": None}, "keep_last", None),
        ({"precision": "bf16"}, "precision", "bf16"),
    ],
)
def test_accepts(given, name, value):
    found = getattr(settings.parse(json.dumps(given)), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ('{"max_step": 5}', "max_step "),
        ('{"framework": "hf"}', "framework"),
        ('{"max_steps": "5"}', "max_steps"),
        ('{"max_steps": 5.0}', "max_steps"),
        ('{"max_steps": true}', "max_steps"),
        ('{"max_steps": 0}', "max_steps"),
        ('{"save_steps": null}', "save_steps"),
        ('{"lr": "3e-5"}', "lr"),
        ('{"lr": 0}', "lr"),
        ('{"lr": NaN}', "lr"),
        ('{"lr": Infinity}', "lr"),
        ('{"seed": -1}', "seed"),
        ('{"seed": 4294967296}', "seed"),
        ('{"max_seq_len": 1}', "max_seq_len"),
        ('{"precision": "fp8"}', "precision"),
        ('{"dataset_text_field": ""}', "dataset_text_field"),
        ('{"dataset_text_field": ["text"]}', "dataset_text_field"),
        ('{"max_steps": 5, "num_epochs": 1}', "num_epochs"),
        ('{"gradient_accumulation": 2, "gradient_accumulation_steps": 2}', "gradient_accumulation_steps"),
        ("[]", "extra_args"),
        ("{", "extra_args"),
    ],
)
def test_refuses_and_names_the_setting(given, named):
    with pytest.raises(UserError, match=named):
        settings.parse(given)
