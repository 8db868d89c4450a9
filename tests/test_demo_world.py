"""The synthetic world and the bundled models that were trained on it."""

import json
import random
from collections import Counter

import pytest

from demo import chinese, english
from demo.documents import Documents, TaskMix
from demo.length_benchmark import questions
from self_lengthen.family import load_family
from self_lengthen.filters import check_response, instruction_key
from self_lengthen.scoring import parse_constraint
from self_lengthen.text import count_words
from tests.real import ROOT

WORLDS = [("llama", english.WORLD), ("qwen", chinese.WORLD)]


@pytest.mark.parametrize(("name", "world"), WORLDS)
def test_texts_of_1500_words_mostly_pass_the_response_check(name, world):
    rng = random.Random(1)
    passed = 0
    for _ in range(40):
        subject, aspects, _ = world.topic(rng)
        text = world.article(subject, aspects, world.last_habits, rng)
        while count_words(text) < 1500:
            text += world.sentence_gap + world.sentence(subject, rng.choice(aspects), rng)
        passed += check_response(load_family(name), text, "stop") is None
    assert passed >= 30


@pytest.mark.parametrize(("name", "world"), WORLDS)
def test_200_instructions_are_mostly_distinct(name, world):
    rng = random.Random(2)
    keys = {instruction_key(world.topic(rng)[2]) for _ in range(200)}
    assert len(keys) >= 190


@pytest.mark.parametrize(("name", "world"), WORLDS)
def test_an_extension_holds_the_draft_and_is_longer_or_equal(name, world):
    rng = random.Random(3)
    for _ in range(100):
        subject, aspects, _ = world.topic(rng)
        draft, longer = world.draft_and_extension(subject, aspects, world.last_habits, rng)
        kept = iter(longer.split("\n\n"))
        paragraphs = draft.replace("\n\n", "\n").split("\n")
        assert all(text.startswith(part) for part, text in zip(paragraphs, kept, strict=True))
        assert count_words(longer) >= count_words(draft)


@pytest.mark.parametrize(("name", "world"), WORLDS)
def test_the_same_seed_draws_the_same_documents(name, world):
    family = load_family(name)
    first, second = (Documents(world, family, random.Random(5)) for _ in range(2))
    for _ in range(20):
        assert first.draw(TaskMix.TASKS) == second.draw(TaskMix.TASKS)


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_the_held_out_demands_are_a_balanced_grid_and_each_query_has_its_own(name):
    rows = list(questions(name, 5, known=set()))
    counts = Counter((row["range"], row["type"]) for row in rows)
    assert len(counts) == 12 and set(counts.values()) == {5}
    for row in rows:
        assert row["constraint"] in row["query"]
        low, high = map(int, row["range"].split("-"))
        demand = parse_constraint(row["type"], row["constraint"])
        assert low <= demand.low <= demand.high <= high


def test_a_known_question_is_not_held_out():
    known = {row["asked_before"] for row in questions("llama", 5, known=set())}
    assert len(known) > 50
    assert known.isdisjoint(row["asked_before"] for row in questions("llama", 5, known))


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_a_bundled_model_is_small_and_of_its_familys_architecture(name):
    folder = ROOT / "demo" / "models" / name
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 6_000_000
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] in load_family(name).model_types
    assert config["max_position_embeddings"] == 4096


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_there_are_at_least_40_seeds_over_seven_kinds(name):
    rows = [json.loads(line) for line in load_family(name).seeds.open(encoding="utf-8")]
    assert len(rows) >= 40
    assert len({row["kind"] for row in rows}) == 7
    assert len({instruction_key(row["prompt"]) for row in rows}) == len(rows)
