//! What the processes beside the manager hold and wait for; and constants that are named like bounds and are none.

use super::{Group, NONE, b, n, s};

const DNS: &str = "what_is_at_the_bound_of_a_setting_is_taken_and_one_more_is_refused_by_its_key";
const WORKER: &str =
    "what_is_at_the_bound_of_a_setting_of_a_worker_is_taken_and_one_more_is_refused";
const WATCHDOG: &str =
    "what_is_at_the_bound_of_a_setting_of_the_watchdog_is_taken_and_one_more_is_refused";
const SAMPLER: &str =
    "what_is_at_the_bound_of_a_setting_of_the_sampler_is_taken_and_one_more_is_refused";
const KEY: &str = "refused at the start, with the key";
const QUERIES: &str = "berth.dns.queries";

#[rustfmt::skip]
pub(super) const ALL: &[Group] = &[
    Group { title: "Names that are resolved", owner: "dns", file: "services/dns/src/config.rs", rows: &[
        s("forwards_max", "FORWARDS_MAX", "questions to upstreams at a time, of one caller a quarter", "SERVFAIL at once", QUERIES, "so_many_are_asked_at_a_time_and_one_more_is_told_at_once"),
        s("cache_entries", "CACHE_ENTRIES_MAX", "answers that are kept", "the oldest goes", QUERIES, "the_cache_lets_records_age_and_has_a_last_place"),
        s("cache_ttl_max", "", "how long an answer is kept", "it is asked for again", QUERIES, "the_cache_lets_records_age_and_has_a_last_place"),
        s("upstream_timeout", "", "how long an upstream may take", "the next one is asked, at last SERVFAIL", QUERIES, "the_next_upstream_is_asked_when_one_is_silent_or_fails_and_none_is_servfail"),
        s("egress_life_max", "EGRESS_LIFE_MOST", "how long what a name has opened lives", "closed, and opened by the next question", NONE, "what_lived_as_long_as_it_may_is_over_and_the_next_question_opens_it_anew"),
        n("EGRESS_LIFE_MOST", "`egress_life_max` that can be configured", KEY, NONE, DNS),
        n("DOMAIN_MAX", "`domain`, in bytes", KEY, NONE, DNS),
        n("LABEL_MAX", "one part of it, in bytes", KEY, NONE, DNS),
    ] },
    Group { title: "Questions over TCP", owner: "dns", file: "services/dns/src/serve.rs", rows: &[
        n("STREAMS_MAX", "callers at a time, of one address a quarter", "of one address hung up on; of all kept waiting by the kernel", NONE, "who_has_its_part_of_the_streams_is_hung_up_on_and_one_more_than_all_waits"),
    ] },
    Group { title: "Answers over UDP", owner: "dns", file: "services/dns/src/message.rs", rows: &[
        b("UDP_PAYLOAD_MAX", "an answer over UDP; without EDNS 512, and less where EDNS says less", "cut with the mark TC: ask over TCP", QUERIES, "a_reply_of_the_most_that_goes_over_udp_is_whole_and_one_more_byte_is_cut"),
    ] },
    Group { title: "Lists of services", owner: "dns", file: "services/dns/src/zone.rs", rows: &[
        b("TEXT_MAX", "one text of a TXT record", "the next text begins", NONE, "a_list_of_services_that_is_long_has_several_texts"),
    ] },
    Group { title: "What names have opened", owner: "dns", file: "services/dns/src/openings.rs", rows: &[
        n("EACH_MAX", "places of one sandbox", "what ends first gives way; an answer that needs more is SERVFAIL", QUERIES, "what_ends_first_gives_way_to_what_is_new_and_never_what_is_wanted"),
        n("ALL_MAX", "places of all", "whoever has most makes room", NONE, "where_all_are_too_many_whoever_has_most_makes_room"),
    ] },
    Group { title: "Samples", owner: "metrics", file: "services/metrics/src/config.rs", rows: &[
        s("interval", "INTERVAL_MOST", "time between two samples", "rounds that are missed are counted", "berth.sampler.missed_rounds", "a_round_that_takes_too_long_leaves_out_those_whose_time_has_passed_and_they_are_counted"),
        n("INTERVAL_MOST", "`interval` that can be configured", KEY, NONE, SAMPLER),
        s("history", "HISTORY_MOST", "how long samples are kept, with a minute more", "the oldest go", NONE, "what_is_older_than_is_kept_goes_and_what_is_younger_stays"),
    ] },
    Group { title: "The watchdog", owner: "watchdog", file: "services/watchdog/src/config.rs", rows: &[
        s("check_interval", "INTERVAL_MOST", "time between two runs", "the next run begins", "berth.watchdog.last_run.time", "what_was_left_is_looked_at_again_soon_and_ever_less_often"),
        n("INTERVAL_MOST", "`check_interval` that can be configured", KEY, NONE, WATCHDOG),
        s("grace_window", "GRACE_MOST", "time between the two looks of a run", "the second look", NONE, "what_a_record_explains_by_the_second_look_or_what_does_not_answer_is_left"),
        n("GRACE_MOST", "`grace_window` that can be configured", KEY, NONE, WATCHDOG),
        s("object_timeout", "OBJECT_TIMEOUT_MOST", "how long one object may take", "told as failed", "berth.watchdog.failed_objects", "an_object_that_takes_too_long_is_told_as_failed_and_is_gone_in_the_end"),
        n("OBJECT_TIMEOUT_MOST", "`object_timeout` that can be configured", KEY, NONE, WATCHDOG),
        s("lease_time", "LEASE_TIME_MOST", "how long its lease lasts without being renewed", "another one may run", "berth.work_lease.count", "a_watchdog_that_hangs_in_a_run_loses_its_lease_and_another_one_runs"),
        n("LEASE_TIME_MOST", "`lease_time` that can be configured", KEY, NONE, WATCHDOG),
        b("NAME_MAX", "`name`", KEY, NONE, WATCHDOG),
    ] },
    Group { title: "Workers of collections", owner: "image-gc", file: "services/image-gc/src/config.rs", rows: &[
        s("lease_time", "LEASE_TIME_MOST", "how long its slices are its own without being renewed", "others take them", "berth.work_lease.count", "a_worker_that_hangs_loses_its_slices_and_comes_back_anew"),
        n("LEASE_TIME_MOST", "`lease_time` that can be configured", KEY, NONE, WORKER),
        b("NAME_MAX", "`name`", KEY, NONE, WORKER),
    ] },
    Group { title: "Plans of collections", owner: "image-gc", file: "services/image-gc/src/run.rs", rows: &[
        n("PLANS_MAX", "plans of one slice while the catalog changes", "what is left stays, and the next run plans it", NONE, "what_a_changed_catalog_refuses_is_planned_anew_and_is_no_failure"),
    ] },
    Group { title: "Goals that are missed", owner: "image-gc", file: "services/lib/collect/src/plan.rs", rows: &[
        n("LARGEST_MAX", "objects in use that explain it", "the largest are named", "berth.collection.missed", "a_missed_goal_is_explained_by_the_largest_in_use"),
    ] },
    Group { title: "Heartbeats", owner: "dns, image-gc, metrics, watchdog", file: "services/lib/plugin/src/heartbeat.rs", rows: &[
        n("EVERY", "time between two heartbeats", "the next one", NONE, "a_process_that_is_as_it_told_tells_it_again_when_the_next_heartbeat_is_due"),
        n("TIME_TO_LIVE", "silence", "AWAY", NONE, "a_process_is_as_it_says_until_it_is_silent_and_is_forgotten_in_the_end"),
        b("REASON_MAX", "why it does not serve", "cut", NONE, "a_heartbeat_fits_into_the_contract_however_long_its_words_are"),
        b("RESULT_MAX", "what came of its last run", "cut", NONE, "a_heartbeat_fits_into_the_contract_however_long_its_words_are"),
    ] },
];

/// Constants that are named like bounds: those that nobody meets from outside, or that another bound comes before.
#[rustfmt::skip]
pub(super) const NONE_OF_OURS: &[(&str, &str, &str)] = &[
    ("services/dns/src/forward.rs", "KEPT_BYTES_MAX", "an answer that is longer is given, and not kept"),
    ("services/dns/src/serve.rs", "PACKET_MAX", "a buffer: a question that is longer is malformed"),
    ("services/dns/src/serve.rs", "PENDING_MAX", "questions beyond it are dropped and asked again; `forwards_max` bounds those that cost something"),
    ("services/dns/src/upstream.rs", "UDP_MAX", "a buffer, larger than what is asked for"),
    ("services/image-gc/src/directory/links.rs", "DEPTH_MAX", "as deep as names of repositories are"),
    ("services/image-gc/src/follow.rs", "RUNS_MAX", "as many as the manager keeps"),
    ("services/image-gc/src/manager.rs", "LIMIT", "a manager that is silent is away"),
    ("services/image-gc/src/manager.rs", "MESSAGE_BYTES_MAX", "what our own manager answers"),
    ("services/image-gc/src/run.rs", "ABORTED_BYTES_MAX", "cuts to the contract's WORDS_MAX"),
    ("services/image-gc/src/run.rs", "FAILED_MAX", "cuts to the contract's NAMED_MAX"),
    ("services/lib/calls/src/access.rs", "METHOD_MAX", "cuts what is written down"),
    ("services/lib/calls/src/objects.rs", "NAME_MAX", "cuts what is written down"),
    ("services/lib/calls/src/trail.rs", "QUEUE_MAX", "a disk that hangs: what does not fit is counted as lost"),
    ("services/lib/collect/src/manifest.rs", "BYTES_MAX", "what is larger is no manifest"),
    ("services/lib/containerd/src/archive.rs", "LINKS_MAX", "links that lead in a circle"),
    ("services/lib/containerd/src/client.rs", "ANSWER_MAX", "what our own containerd answers"),
    ("services/lib/containerd/src/holders.rs", "PROCESSES_MAX", "a list for people, which ends there"),
    ("services/lib/containerd/src/holders.rs", "SOCKETS_MAX", "a list for people, which ends there"),
    ("services/lib/containerd/src/images.rs", "KNOWN_MAX", "a cache, which begins anew"),
    ("services/lib/containerd/src/users.rs", "FILE_MAX", "what is larger is no list of users"),
    ("services/lib/copy/src/pack.rs", "LINKS_MAX", "further ones are written as files of their own"),
    ("services/lib/copy/src/pack.rs", "LINK_NAMES_MAX", "further ones are written as files of their own"),
    ("services/lib/copy/src/root.rs", "DISTURBED_MAX", "how often a look is repeated"),
    ("services/lib/copy/src/unpack.rs", "PATH_MAX", "behind the kernel's own"),
    ("services/lib/daemon/src/config.rs", "ENV_TEXTS_MAX", "how often the environment is read again"),
    ("services/lib/netns/src/fence.rs", "READS_MAX", "how often a look is repeated"),
    ("services/lib/netns/src/foreign.rs", "DEPTH_MAX", "deeper than firewalls are"),
    ("services/lib/netns/src/legacy.rs", "DEPTH_MAX", "deeper than firewalls are"),
    ("services/lib/netns/src/named.rs", "BATCH_MAX", "cuts one change into several"),
    ("services/lib/netns/src/named.rs", "TRIES_MAX", "how often a change is repeated"),
    ("services/lib/netns/src/nfnetlink.rs", "READS_MAX", "how often a look is repeated"),
    ("services/lib/plugin/src/heartbeat.rs", "LIMIT", "a manager that is silent is away"),
    ("services/lib/plugin/src/leases.rs", "LIMIT", "a manager that is silent is away"),
    ("services/lib/registry/src/authorize.rs", "TOKEN_MAX", "what is larger is no token"),
    ("services/lib/registry/src/trouble.rs", "SAID_MAX", "cuts what a registry says of a refusal"),
    ("services/lib/telemetry/src/http_client.rs", "ANSWER_MAX", "what a receiver of telemetry answers"),
    ("services/lib/telemetry/src/prometheus.rs", "CONNECTIONS_MAX", "further ones wait in the kernel's queue"),
    ("services/lib/tls/src/certificate.rs", "SUBJECT_MAX", "cuts what is written down"),
    ("services/lib/tls/src/files.rs", "FILE_MAX", "what is larger is no certificate"),
    ("services/lib/tls/src/serve.rs", "CALLS_MAX", "the transport has further ones wait"),
    ("services/sandbox-manager/src/collecting/deletions.rs", "REMOVALS_MAX", "how often containerd is asked again"),
    ("services/sandbox-manager/src/export.rs", "BYTES_MAX", "cuts what is exported into requests"),
    ("services/sandbox-manager/src/export.rs", "RECORDS_MAX", "cuts what is exported into requests"),
    ("services/sandbox-manager/src/fix.rs", "RETRY_LIMIT", "a second look of an audit"),
    ("services/sandbox-manager/src/rpc/logs.rs", "PASSED_MAX", "cuts a long search into looks"),
    ("services/sandbox-manager/src/rpc/node.rs", "TROUBLES_MAX", "a list for people, which ends there"),
    ("services/watchdog/src/app.rs", "REQUESTS_MAX", "callers that wait for the same run"),
    ("services/watchdog/src/manager.rs", "LIMIT", "a manager that is silent is away"),
    ("services/watchdog/src/manager.rs", "MESSAGE_BYTES_MAX", "what our own manager answers"),
];
