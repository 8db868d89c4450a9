"""Claims about `self_lengthen.extension`: what one attempt asks, keeps and answers."""

import asyncio

import pytest
from fakes import FakeChat, article, hanzi, prose, said

from self_lengthen.endpoint import ContextOverflowError, EndpointError, Sampling
from self_lengthen.extension import Extension, call_seed, extend_once
from self_lengthen.family import load_family
from self_lengthen.filters import Reason
from self_lengthen.text import count_words

LLAMA = load_family("llama")
INSTRUCTION = "Describe the harbour."
SAMPLING = Sampling(max_tokens=512)


def extend(chat: FakeChat, initial: str, family=LLAMA, seed_of=lambda name: 0) -> Extension:
    attempt = extend_once(chat, "extender", family, INSTRUCTION, initial, SAMPLING, seed_of)
    return asyncio.run(attempt)


def asked(chat: FakeChat, family=LLAMA) -> list[tuple[str, str]]:
    """Of each call the draft that its prompt holds, and how the assistant's turn was opened."""
    before, after = family.extend_prompt(INSTRUCTION, "|").split("|")
    for call in chat.calls:
        assert call.user.startswith(before) and call.user.endswith(after)
    return [(c.user[len(before) : len(c.user) - len(after)], c.opened_with) for c in chat.calls]


class TestWhatAnAttemptAsks:
    def test_three_rounds_of_half_the_blocks_then_the_whole_text_opened_by_two_thirds(self):
        # 20 words in 4 blocks: stage 1 gets the first 4 // 2 = 2.
        initial = article(5, 5, 5, 5)
        # Round 1. Stage 1 answers 5 blocks of 8: floor(2 x 5 / 3) = 3 of them open stage 2.
        expanded1 = article(8, 8, 8, 8, 8, start=1000)
        opening1 = article(8, 8, 8, start=1000)
        rest1 = article(6, 6, start=2000)
        text1 = f"{opening1}\n\n{rest1}"  # 5 blocks, 24 + 12 = 36 words
        # Round 2. 5 // 2 = 2 blocks of text1; stage 1 answers 2: floor(4 / 3) = 1 opens stage 2.
        expanded2, opening2, rest2 = article(20, 9, start=3000), prose(20, 3000), prose(30, 4000)
        text2 = f"{opening2}\n\n{rest2}"  # 2 blocks, 50 words
        # Round 3. 2 // 2 = 1 block of text2; stage 1 answers 6: floor(12 / 3) = 4 open stage 2.
        expanded3 = article(11, 12, 13, 14, 15, 16, start=5000)
        opening3, rest3 = article(11, 12, 13, 14, start=5000), prose(60, 6000)
        text3 = f"{opening3}\n\n{rest3}"  # 50 + 60 = 110 words

        chat = FakeChat([expanded1, rest1, expanded2, rest2, expanded3, rest3])
        extension = extend(chat, initial)

        assert asked(chat) == [
            (article(5, 5), ""),
            (initial, opening1),
            (article(8, 8, start=1000), ""),
            (text1, opening2),
            (opening2, ""),
            (text2, opening3),
        ]
        assert extension.text == text3
        assert extension.reason is None
        assert [(r.words, r.reason, r.finish_reason) for r in extension.rounds] == [
            (36, None, "stop"),
            (50, None, "stop"),
            (110, None, "stop"),
        ]
        assert {(call.model, call.sampling) for call in chat.calls} == {("extender", SAMPLING)}

    def test_five_blocks_give_stage_1_the_first_two(self):
        chat = FakeChat(lambda call: "")
        extend(chat, article(5, 5, 5, 5, 5))
        assert asked(chat)[0] == (article(5, 5), "")

    def test_a_text_of_one_block_has_no_stage_1(self):
        initial = prose(10)
        chat = FakeChat([prose(20, 100), prose(30, 200), prose(40, 300)])
        extend(chat, initial)
        assert asked(chat) == [(initial, ""), (prose(20, 100), ""), (prose(30, 200), "")]

    def test_a_stage_1_answer_of_one_block_opens_nothing(self):
        # floor(2 x 1 / 3) = 0 blocks
        chat = FakeChat(lambda call: prose(9, 100))
        extend(chat, article(5, 5))
        assert asked(chat)[1] == (article(5, 5), "")

    def test_stage_1_is_used_even_when_its_end_is_cut_off(self):
        cut = said(article(9, 9, 9, start=100) + " and", "length")
        chat = FakeChat([cut, prose(30, 200), *[""] * 4])
        extension = extend(chat, article(5, 5))
        assert extension.text == article(9, 9, start=100) + "\n\n" + prose(30, 200)

    def test_a_chinese_prefix_and_its_continuation_are_joined_without_a_space(self, qwen):
        initial = hanzi(10) + "\n\n" + hanzi(10, 10)
        expanded = "\n\n".join(hanzi(10, start) for start in (100, 200, 300))
        opening = "\n\n".join(hanzi(10, start) for start in (100, 200))  # 2 of 3 blocks
        chat = FakeChat([expanded, hanzi(30, 400), *[""] * 4])
        extension = extend(chat, initial, qwen)
        assert asked(chat, qwen)[:2] == [(hanzi(10), ""), (initial, opening)]
        assert extension.text == opening + hanzi(30, 400)  # 20 + 30 words > 1.2 x 20
        assert extension.reason is None

    def test_every_call_has_another_seed_and_a_second_run_has_the_same(self):
        def seeds(attempt: int) -> list[int]:
            chat = FakeChat(lambda call: "")
            extend(
                chat,
                article(5, 5),
                seed_of=lambda name: call_seed(42, "i1-q000000-r0-e0", attempt, name),
            )
            return [call.seed for call in chat.calls]

        assert len(seeds(1)) == 6
        assert len({*seeds(1), *seeds(2)}) == 12
        assert seeds(1) == seeds(1)

    def test_seeds_of_a_run_do_not_collide_and_fit_31_bits(self):
        seeds = {
            call_seed(42, f"i1-q{number:06d}-r0-e{copy}", attempt, f"round{round_}-stage{stage}")
            for number in range(50)
            for copy in range(2)
            for attempt in (1, 2, 20)
            for round_ in (1, 2, 3)
            for stage in (1, 2)
        }
        assert len(seeds) == 50 * 2 * 3 * 3 * 2
        assert all(0 <= seed < 2**31 for seed in seeds)


class TestEarlyStop:
    WATCHED = Sampling(max_tokens=512, stop_repeat=LLAMA.ngram_rules)

    def extend(self, chat: FakeChat, sampling: Sampling) -> Extension:
        attempt = extend_once(
            *(chat, "extender", LLAMA, INSTRUCTION, article(5, 5), sampling, lambda name: 0)
        )
        return asyncio.run(attempt)

    def test_only_stage_2_is_stopped_at_a_repetition(self):
        chat = FakeChat(lambda call: article(9, 9, 9, start=100))
        self.extend(chat, self.WATCHED)
        assert {(bool(c.opened_with), c.sampling) for c in chat.calls} == {
            (False, SAMPLING),  # a repetition in its last third would be cut away
            (True, self.WATCHED),
        }

    def test_a_prefix_that_repeats_needs_no_stage_2(self):
        # 2 of 3 blocks are the prefix, and the same.
        repeating = "\n\n".join([prose(12), prose(12), prose(12, 50)])
        chat = FakeChat([repeating] * 3)
        extension = self.extend(chat, self.WATCHED)
        assert extension.reason == Reason.REPETITION
        assert [(r.words, r.reason, r.finish_reason) for r in extension.rounds] == [
            (24, Reason.REPETITION, None)
        ] * 3

    def test_without_rules_everything_is_asked(self):
        repeating = "\n\n".join([prose(12), prose(12), prose(12, 50)])
        chat = FakeChat([repeating, prose(5, 200)] * 3)
        assert self.extend(chat, SAMPLING).reason == Reason.REPETITION


VOID = {
    Reason.REPETITION: prose(20, 100) + " " + prose(20, 100),
    "stopped": said(prose(20, 100) + " " + prose(12, 100), "repetition"),
    Reason.ENDING: prose(20, 100) + " and",
    Reason.TRUNCATED: said(prose(20, 100), "length"),
    Reason.NOT_LONGER: prose(10, 100),  # as long as the text: not longer
    Reason.EMPTY: "",
    Reason.SELF_TALK: "Here is a revised text. " + prose(20, 100),
    Reason.CONTEXT: ContextOverflowError("full"),
}


class TestVoidRounds:
    @pytest.mark.parametrize("reason", VOID)
    def test_a_void_round_leaves_the_text_as_it_was(self, reason):
        initial, longer = prose(10), prose(15, 500)
        chat = FakeChat([VOID[reason], longer, VOID[reason]])
        extension = extend(chat, initial)
        assert [draft for draft, _ in asked(chat)] == [initial, initial, longer]
        assert extension.text == longer
        assert extension.reason is None  # 15 > 1.2 x 10: what counts is the best, not the last
        assert extension.rounds[0].reason == ("repetition" if reason == "stopped" else reason)
        assert extension.rounds[1].reason is None

    def test_one_word_more_counts_and_the_same_number_does_not(self):
        chat = FakeChat([prose(10, 100), prose(11, 200), prose(11, 300)])
        extension = extend(chat, prose(10))
        reasons = [round_.reason for round_ in extension.rounds]
        assert reasons == [Reason.NOT_LONGER, None, Reason.NOT_LONGER]
        assert extension.text == prose(11, 200)

    def test_stage_2_is_judged_together_with_its_opening(self):
        # The continuation alone is finished and unrepetitive; with its opening it says all twice.
        chat = FakeChat([article(20, 20, 5, start=100), article(20, 20, start=100), *[""] * 4])
        extension = extend(chat, article(5, 5))
        assert extension.rounds[0].reason == Reason.REPETITION

    def test_an_overflow_in_stage_1_skips_stage_2_of_that_round(self):
        initial = article(5, 5)
        full = ContextOverflowError("full")
        chat = FakeChat([full, article(9, 9, 9, start=100), prose(9, 200), "", ""])
        extension = extend(chat, initial)
        opening = article(9, 9, start=100)
        assert asked(chat)[:3] == [(prose(5), ""), (prose(5), ""), (initial, opening)]
        assert [r.reason for r in extension.rounds[:2]] == [Reason.CONTEXT, None]
        assert (extension.rounds[0].words, extension.rounds[0].finish_reason) == (0, None)

    def test_an_overflow_in_stage_2_voids_the_round(self):
        full = ContextOverflowError("full")
        chat = FakeChat([article(9, 9, 9), full, article(9, 9, 9), full, article(9, 9, 9), full])
        extension = extend(chat, article(5, 5, start=100))
        assert (extension.text, extension.reason) == (article(5, 5, start=100), Reason.CONTEXT)

    def test_any_other_failure_of_the_server_is_not_swallowed(self):
        with pytest.raises(EndpointError, match="gone"):
            extend(FakeChat([EndpointError("gone")]), prose(10))


class TestSuccess:
    @pytest.mark.parametrize("fifth", [1, 2, 3, 7, 20, 33, 100, 341])
    def test_exactly_a_fifth_more_is_no_success_and_one_word_more_is(self, fifth):
        # initial 5n words; 1.2 x 5n = 6n
        for words, reason in ((6 * fifth, Reason.NOT_LONGER), (6 * fifth + 1, None)):
            chat = FakeChat([prose(words, 10_000), prose(1), prose(1)])
            extension = extend(chat, prose(5 * fifth))
            assert count_words(extension.text) == words
            assert extension.rounds[0].reason is None
            assert extension.reason == reason

    def test_growth_adds_up_over_the_rounds(self):
        # 10 -> 11 -> 12 -> 13: no round adds a fifth, all three together do
        chat = FakeChat([prose(11, 100), prose(12, 200), prose(13, 300)])
        extension = extend(chat, prose(10))
        assert (extension.text, extension.reason) == (prose(13, 300), None)

    @pytest.mark.parametrize(
        ("rounds", "reason"),
        [
            ((Reason.NOT_LONGER, Reason.NOT_LONGER, Reason.NOT_LONGER), Reason.NOT_LONGER),
            ((Reason.NOT_LONGER, Reason.ENDING, Reason.TRUNCATED), Reason.ENDING),
            ((Reason.REPETITION, Reason.NOT_LONGER, Reason.ENDING), Reason.REPETITION),
            ((Reason.NOT_LONGER, Reason.NOT_LONGER, Reason.CONTEXT), Reason.CONTEXT),
        ],
    )
    def test_the_first_failed_check_explains_a_failed_attempt(self, rounds, reason):
        extension = extend(FakeChat([VOID[void] for void in rounds]), prose(10))
        assert extension.reason == reason
        assert extension.text == prose(10)

    def test_a_text_that_grew_too_little_failed_for_its_failed_check(self):
        chat = FakeChat([prose(11, 100), VOID[Reason.ENDING], prose(12, 200)])  # 12 = 1.2 x 10
        assert extend(chat, prose(10)).reason == Reason.ENDING
