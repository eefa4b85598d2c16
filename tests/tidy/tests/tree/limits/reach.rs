//! What reaches into a sandbox, and what comes out of it.

use super::{CALLS, Group, NONE, b, n};

#[rustfmt::skip]
pub(super) const ALL: &[Group] = &[
    Group { title: "Input and output of programs", owner: "sandbox-manager", file: "services/lib/platform/src/exec.rs", rows: &[
        b("EXEC_WINDOW_BYTES", "input that is not in the pipe of the program yet, before the last message of it", "the caller waits", NONE, "input_is_taken_in_up_to_its_window_and_what_follows_waits_for_the_program"),
    ] },
    Group { title: "Output behind the end of a program", owner: "sandbox-manager", file: "services/lib/containerd/src/drain.rs", rows: &[
        b("DRAIN_BYTES", "what others still write into its pipes", "cut, and said to be incomplete", NONE, "so_much_is_read_behind_the_end_and_one_byte_more_is_cut"),
        n("QUIET", "silence in them that is waited for", "the end is told without the rest", NONE, "a_pipe_that_is_held_open_is_waited_for_only_as_long_as_it_is_told"),
        n("DRAIN", "how long they are waited for in all", "the end is told without the rest", NONE, "a_pipe_that_trickles_is_read_only_as_long_as_it_is_waited_for"),
    ] },
    Group { title: "Callers that attach", owner: "sandbox-manager", file: "services/sandbox-manager/src/console.rs", rows: &[
        n("REPLAY_RECORDS", "lines from before that they are shown", "older ones are not shown", NONE, "a_replay_of_many_short_lines_has_the_last_of_them"),
    ] },
    Group { title: "What attached callers are told", owner: "sandbox-manager", file: "services/sandbox-manager/src/rpc/attach.rs", rows: &[
        b("REPLAY", "text from before that they are shown", "older lines are not shown", NONE, "a_replay_is_bounded_and_what_follows_goes_over_segments_without_gap_or_repeat"),
        n("LAST_WORDS_MAX", "how long the last lines of a container are waited for", "the end is told without them", NONE, "a_log_is_heard_out_until_it_is_silent_or_has_taken_too_long"),
    ] },
    Group { title: "Answers to probes", owner: "sandbox-manager", file: "services/lib/netns/src/probes.rs", rows: &[
        b("HEAD_MAX", "the head of an answer to a probe by HTTP", "the probe fails: no HTTP answer", NONE, "a_status_from_200_to_399_is_a_success_whatever_follows_it"),
    ] },
    Group { title: "Records of logs", owner: "log-writer", file: "services/lib/logs/src/format.rs", rows: &[
        b("TEXT_MAX", "a line", "cut, and marked as TRUNCATED", NONE, "a_long_line_is_handed_on_in_pieces_and_cut_at_its_greatest_length"),
    ] },
    Group { title: "Segments of logs", owner: "log-writer", file: "services/lib/logs/src/segments.rs", rows: &[
        b("SEGMENT_MOST", "a segment, which is an eighth of its log where that is less, and at least 64 KiB", "the next one begins; the oldest goes where all are too large", "berth.log.dropped_lines", "a_segment_is_an_eighth_of_its_log_within_bounds_and_the_oldest_goes"),
    ] },
    Group { title: "Lines that wait for the disk", owner: "log-writer", file: "services/log-writer/program/shared.rs", rows: &[
        b("RING", "what is read of a container and not written yet", "while the disk hangs, lines are lost; a record of the log says how many", "berth.log.dropped_lines", "a_disk_that_hangs_stops_nobody_and_a_gap_counts_what_was_not_taken"),
    ] },
    Group { title: "A sandbox's own log", owner: "sandbox-manager", file: "services/sandbox-manager/src/lifecycle.rs", rows: &[
        b("LIMIT", "what the node says about one sandbox", "the oldest goes", NONE, "all_segments_together_stay_below_the_limit_and_the_newest_stay"),
        b("LINE_MAX", "one line of it", "cut", NONE, "what_is_told_is_there_when_it_is_settled"),
    ] },
    Group { title: "Export of logs", owner: "sandbox-manager", file: "services/sandbox-manager/src/export.rs", rows: &[
        n("TRIES", "tries of a batch at which the receiver breaks", "it is sent in pieces: a line that is refused alone, while others are taken, is dropped and counted", "berth.log.dropped_lines", "a_line_is_given_up_after_so_many_tries_that_find_the_receiver_and_counts_as_dropped_and_not_as_exported"),
    ] },
    Group { title: "Trees that are copied", owner: "sandbox-manager", file: "services/lib/copy/src/lib.rs", rows: &[
        n("DEPTH_MAX", "directories that lie in each other", "TAR_INVALID on the way in, PATH_REFUSED on the way out", CALLS, "a_tree_is_as_deep_on_the_way_in_as_it_may_be_on_the_way_out"),
    ] },
    Group { title: "Headers of archives that are copied", owner: "sandbox-manager", file: "services/lib/copy/src/reader.rs", rows: &[
        b("EXTENSION_MAX", "a long name or extended attributes", "TAR_INVALID", CALLS, "what_is_no_archive_or_asks_for_too_much_is_refused"),
    ] },
    Group { title: "Firewalls of others", owner: "sandbox-manager", file: "services/lib/netns/src/legacy.rs", rows: &[
        n("TIME_LIMIT", "how long `iptables-legacy-save` may take", "killed; a later look tells", NONE, "a_program_that_takes_too_long_is_killed_and_what_another_says_is_whole"),
    ] },
    Group { title: "Sandboxes that an audit clears", owner: "sandbox-manager", file: "services/sandbox-manager/src/fix.rs", rows: &[
        n("CLEAR_LIMIT", "how long one is waited for", "told as failed; the work goes on", NONE, "a_sandbox_that_takes_too_long_is_told_as_failed_and_is_gone_in_the_end"),
        n("CLEAR_LIMIT", "how long any other object is waited for", "told as failed; the work goes on", NONE, "an_object_that_takes_too_long_is_told_as_failed_and_is_gone_in_the_end"),
    ] },
];
