"""The promises of the design, and the tests that each of them rests on; a missing one fails here.

1 killed at any moment, the same command continues   2 a step is complete or not, options never mix
3 workers die and come back, or a clear failure      4 retries by class, early stop
5 every sample accounted for                         6 flat memory, pulled
7 a lost node ends the others within a minute        8 only our own processes, none left
9 bad input: one line, status 2, nothing changed     10 loopback, or the node's address with a key
11 the same token ids in training and serving        12 progress that survives a resume
"""

import ast
from pathlib import Path

import pytest

PROMISES = {
    1: {
        "test_chaos": [
            "test_promise_1_a_killed_run_ends_as_one_that_nobody_disturbed",
            "test_promise_1_thirty_kills_and_more_lose_nothing",
        ],
        "test_faults": ["test_promise_1_a_torn_journal_is_mended_at_every_byte_of_its_last_record"],
        "test_steps": [
            "test_killed_then_interrupted_it_continues_with_nothing_lost_or_doubled",
        ],
    },
    2: {
        "test_options": [
            "test_a_changed_option_is_named",
            "test_fresh_sets_the_old_run_aside_and_deletes_nothing",
        ],
        "test_steps": [
            "test_a_step_folder_is_complete_only_with_its_manifest",
            "test_a_step_started_with_other_options_is_refused_and_the_option_named",
        ],
    },
    3: {
        "test_supervisor": [
            "test_promise_3_a_dead_process_is_restarted_with_doubled_pauses",
            "test_promise_3_a_worker_that_dies_too_often_is_given_up_and_the_others_go_on",
            "test_promise_3_when_all_workers_are_given_up_the_server_has_failed",
        ],
        "test_endpoint": ["test_retries_end_at_the_deadline_with_the_last_failure"],
    },
    4: {
        "test_endpoint": [
            "test_a_passing_failure_is_tried_again",
            "test_a_refusal_is_never_tried_again",
            "test_waits_are_jittered_and_double_up_to_half_a_minute",
        ],
        "test_fanout": ["test_eight_failures_in_a_row_stop_the_run_with_the_first_error"],
    },
    5: {"test_steps": ["test_every_unit_is_kept_dropped_for_a_reason_failed_or_cut"]},
    6: {
        "test_memory": ["test_promise_6_memory_is_flat"],
        "test_fanout": ["test_units_are_pulled_and_not_queued"],
    },
    7: {
        "test_cluster": [
            "test_promise_7_a_killed_rank_is_noticed_and_named",
            "test_promise_7_the_failure_of_one_ends_all_with_its_rank_and_line",
        ],
        "test_chaos": [
            "test_promise_7_a_rank_killed_at_any_time_ends_the_other_and_both_can_go_on"
        ],
        "test_nodes": [
            "test_promise_7_rank_1_killed_in_a_step_ends_rank_0_and_nothing_accepted_is_lost",
            "test_promise_7_two_nodes_complete_a_macro_iteration_though_rank_0_is_killed_in_training",
        ],
    },
    8: {
        "test_owned": [
            "test_a_decoy_with_the_same_words_survives",
            "test_after_the_death_of_the_owner",
        ],
    },
    9: {
        "test_bad_input": ["test_promise_9_a_mistake_is_one_line_and_status_2_and_changes_nothing"],
        "test_options": ["test_a_mistake_is_one_line_and_status_2_and_changes_nothing"],
    },
    10: {
        "test_key": [
            "test_promise_10_every_process_of_a_server_asks_for_the_key",
            "test_promise_10_a_server_that_others_reach_does_not_start_without_a_key",
        ],
        "test_dry_run": [
            "test_everything_listens_on_loopback",
            "test_code_of_the_model_runs_only_when_asked",
        ],
        "test_nodes": [
            "test_promise_10_across_nodes_all_listen_on_the_nodes_address_and_ask_for_a_key"
        ],
    },
    11: {"test_templates": ["test_of_a_conversation", "test_of_any_texts"]},
    12: {
        "test_progress": [
            "test_promise_12_a_log_has_a_plain_line_every_half_minute",
            "test_promise_12_a_terminal_has_a_bar_that_starts_at_what_was_done_before",
        ],
    },
}


@pytest.mark.parametrize("promise", PROMISES)
def test_every_promise_has_its_tests(promise):
    for module, wanted in PROMISES[promise].items():
        tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
        there = {getattr(node, "name", None) for node in ast.walk(tree)}
        assert not set(wanted) - there, module


def test_there_are_twelve_promises():
    assert list(PROMISES) == list(range(1, 13))
