//! What a node holds, and how long its manager waits.

use super::{CALLS, Group, NONE, b, n, s};

const SETTINGS: &str =
    "what_is_at_the_bound_of_a_setting_of_the_manager_is_taken_and_one_more_is_refused";
const KEY: &str = "refused at the start, with the key";
const SHED: &str = "berth.rpc.server.shed_calls";
const HOSTILE: &str = "whoever_means_no_good_is_refused_in_bounded_memory_while_others_are_served";
const DOORS: &str = "one_too_many_takes_the_place_of_the_longest_idle_one_or_is_refused";
const ENDED: &str = "berth.tls.refused_connections";
const LOST: &str = "berth.audit.lost_records";
const PAUSES: &str = "what_may_pass_is_tried_again_later_and_later_and_not_for_ever";
const TRIES: &str = "what_may_pass_is_asked_again_and_not_for_ever";

#[rustfmt::skip]
pub(super) const ALL: &[Group] = &[
    Group { title: "The node, by its configuration", owner: "sandbox-manager", file: "services/sandbox-manager/src/config.rs", rows: &[
        s("sandboxes_max", "SANDBOXES_MAX", "sandboxes that have a record, those that have ended as well", "SANDBOXES_EXHAUSTED", "berth.sandbox.count",
            "a_node_has_as_many_sandboxes_as_it_is_told_and_one_more_is_refused"),
        s("calls.unary_max", "CALLS_MAX", "calls under way that are no streams", "CALLS_EXHAUSTED, with a time to come again", SHED,
            "what_is_too_much_is_refused_with_a_time_to_come_again_and_health_is_not"),
        s("calls.streams_max", "CALLS_MAX", "streams under way, of all kinds", "CALLS_EXHAUSTED, with a time to come again", SHED,
            "a_stream_has_its_place_until_its_last_byte_and_takes_none_from_other_calls"),
        s("calls.default_deadline", "", "how long a call may take whose caller does not say", "DEADLINE_PASSED", CALLS, "what_takes_longer_is_told_as_deadline_exceeded"),
        s("exec.per_sandbox", "EXECS_MAX", "programs run by Exec in one sandbox, and callers attached to it", "EXEC_LIMIT", CALLS, "a_manager_that_stops_ends_what_runs_and_more_than_allowed_is_refused"),
        s("exec.per_node", "EXECS_MAX", "programs run by Exec, and callers attached, on the node", "EXEC_LIMIT", CALLS, "a_manager_that_stops_ends_what_runs_and_more_than_allowed_is_refused"),
        s("parallel_creates", "PARALLEL_CREATES_MAX", "tasks that are created at a time; 0 is four for each CPU", "further ones wait", "berth.sandbox.step.duration",
            "creates_beyond_the_limit_queue_and_go_on_in_turn"),
        s("network.connections_max", "", "connections that one sandbox has opened", "its packets are dropped and counted as denied", NONE,
            "one_sandbox_opens_so_many_connections_and_takes_none_from_another"),
        s("network.slots", "SLOTS_MAX", "networks that are made ahead", "no more are made", NONE, "a_sandbox_gets_what_was_made_for_its_address_and_the_next_is_made"),
        s("log_limit_bytes", "", "log of one container", "the oldest segment goes", "berth.log.dropped_lines",
            "all_segments_together_stay_below_the_limit_and_the_newest_stay").bytes(),
        s("import.max_bytes", "", "an archive, and what a compressed one unpacks to", "ARCHIVE_TOO_LARGE", CALLS, "an_import_is_bounded_in_size_in_room_and_in_time").bytes(),
        s("import.reserve_bytes", "", "disk that an archive on its way leaves free", "DISK_LOW", CALLS, "an_import_is_bounded_in_size_in_room_and_in_time").bytes(),
        s("import.idle_timeout", "", "how long a caller may send nothing of an archive", "IMPORT_STALLED", CALLS, "an_import_is_bounded_in_size_in_room_and_in_time"),
        s("end_timeout", "", "how long Delete and Stop wait whose caller does not say", "DEADLINE_PASSED; the work goes on", CALLS, "a_delete_or_stop_that_takes_too_long_says_what_is_held_and_goes_on"),
        s("dead_horizon", "", "how long the record of a sandbox that has ended is kept", "it is purged", "berth.sandbox.count", "the_dead_are_forgotten_after_the_horizon"),
        s("containerd.call_timeout", "", "how long containerd may take for a call", "RUNTIME_UNREACHABLE, and tried again", "berth.sandbox.troubled", "while_containerd_hangs_nothing_is_taken_for_gone_and_all_that_was_asked_is_done_afterwards"),
        n("BRIDGE_NAME_MAX", "the name of the bridge, in bytes", KEY, NONE, SETTINGS),
        n("IDENTIFIER_MAX", "names of containerd's namespace and snapshotter, in bytes", KEY, NONE, SETTINGS),
        n("DOMAIN_MAX", "the search domain, in bytes", KEY, NONE, SETTINGS),
        n("LABEL_MAX", "one part of it, in bytes", KEY, NONE, SETTINGS),
    ] },
    Group { title: "Callers of other hosts, and the audit log", owner: "sandbox-manager", file: "services/sandbox-manager/src/config/access.rs", rows: &[
        s("tls.handshake_timeout", "", "how long a handshake may take", "the connection ends", ENDED, HOSTILE).from("Tls", "handshake_timeout"),
        s("tls.handshakes_max", "CONNECTIONS_MAX", "unfinished handshakes", "the oldest of the host that has most of them ends", ENDED,
            "a_host_that_opens_many_evicts_its_own_and_nobody_elses").from("Tls", "handshakes_max"),
        s("tls.connections_max", "CONNECTIONS_MAX", "connections", "the one that is without a call for longest ends, else the new one is refused", ENDED, DOORS).from("Tls", "connections_max"),
        s("tls.per_certificate_max", "CONNECTIONS_MAX", "connections by one certificate", "the same, among its own", ENDED, DOORS).from("Tls", "per_certificate_max"),
        s("tls.idle_timeout", "", "how long a connection may be without a call", "it ends", ENDED, HOSTILE).from("Tls", "idle_timeout"),
        s("audit_log.max_bytes", "", "one file of the audit log", "the next one begins", "berth.audit.records", "the_newest_lines_are_kept_in_so_many_files_of_such_a_size").from("AuditLog", "max_bytes").bytes(),
        s("audit_log.files", "FILES_MAX", "files of it that are kept", "the oldest goes", NONE, "the_newest_lines_are_kept_in_so_many_files_of_such_a_size").from("AuditLog", "files"),
        n("LABEL_OF_DOMAIN_MAX", "the trust domain, in bytes", KEY, NONE, SETTINGS),
    ] },
    Group { title: "Requests of other hosts", owner: "sandbox-manager", file: "services/lib/tls/src/serve.rs", rows: &[
        b("HEADERS_MAX", "the head of a request", "HTTP status 431; far beyond it, the connection ends", NONE, HOSTILE),
    ] },
    Group { title: "The way of their requests", owner: "sandbox-manager", file: "services/lib/calls/src/access.rs", rows: &[
        n("ARRIVAL_MAX", "how long the request of a call that is no stream may be on its way", "DEADLINE_PASSED", CALLS, "a_request_from_another_host_that_never_ends_is_ended"),
    ] },
    Group { title: "Calls by one of their certificates", owner: "sandbox-manager", file: "services/lib/calls/src/limit.rs", rows: &[
        n("SHARE", "one part in so many of the calls under way, and of the streams", "CALLS_EXHAUSTED, with a time to come again", SHED, "no_certificate_takes_more_than_a_quarter_of_the_places"),
    ] },
    Group { title: "Their messages", owner: "sandbox-manager", file: "services/lib/calls/src/arrival.rs", rows: &[
        b("MESSAGE_MAX", "a message", "OUT_OF_RANGE, by its head", CALLS, HOSTILE),
    ] },
    Group { title: "Denied calls in the audit log", owner: "sandbox-manager", file: "services/lib/calls/src/trail/denials.rs", rows: &[
        n("MOST", "denied calls that are written down in a second", "counted, and told in the next record", LOST, "a_flood_is_thinned_and_the_next_one_says_by_how_much"),
    ] },
    Group { title: "Paths of sockets", owner: "every process", file: "services/lib/daemon/src/config.rs", rows: &[
        b("SOCKET_PATH_MAX", "the path of a socket", KEY, NONE, "a_path_of_a_socket_is_as_long_as_the_kernels_and_one_more_is_refused_by_its_key"),
    ] },
    Group { title: "Calls to the processes beside the manager", owner: "dns, image-gc, metrics, watchdog", file: "services/lib/calls/src/lib.rs", rows: &[
        s("unary_max", "", "calls under way that are no streams", "CALLS_EXHAUSTED, with a time to come again", SHED,
            "what_is_too_much_is_refused_with_a_time_to_come_again_and_health_is_not").fixed("Limits"),
        s("streams_max", "", "streams under way", "CALLS_EXHAUSTED, with a time to come again", SHED,
            "a_stream_has_its_place_until_its_last_byte_and_takes_none_from_other_calls").fixed("Limits"),
    ] },
    Group { title: "What callers have open", owner: "sandbox-manager", file: "services/sandbox-manager/src/rpc/access.rs", rows: &[
        n("COPIES_EACH_MAX", "copies of one sandbox", "STREAMS_EXHAUSTED", CALLS, "so_many_are_open_and_a_dropped_ticket_makes_room"),
        n("COPIES_MAX", "copies on the node", "STREAMS_EXHAUSTED", CALLS, "so_many_are_open_and_a_dropped_ticket_makes_room"),
        n("CONNECTIONS_EACH_MAX", "connections into one sandbox by PortForward", "STREAMS_EXHAUSTED", CALLS, "so_many_are_open_and_a_dropped_ticket_makes_room"),
        n("CONNECTIONS_MAX", "connections by PortForward on the node", "STREAMS_EXHAUSTED", CALLS, "so_many_are_open_and_a_dropped_ticket_makes_room"),
    ] },
    Group { title: "Readers of logs", owner: "sandbox-manager", file: "services/sandbox-manager/src/logs.rs", rows: &[
        n("READERS_PER_SANDBOX", "streams of the logs of one sandbox", "LOG_READERS_EXHAUSTED", CALLS, "readers_have_places_of_their_sandbox_and_of_the_node"),
        n("READERS", "on the node", "LOG_READERS_EXHAUSTED", CALLS, "readers_have_places_of_their_sandbox_and_of_the_node"),
    ] },
    Group { title: "Images on their way out", owner: "sandbox-manager", file: "services/sandbox-manager/src/rpc/pulls.rs", rows: &[
        n("EXPORTS_MAX", "exports at a time", "STREAMS_EXHAUSTED", CALLS, "so_many_images_are_exported_at_a_time"),
    ] },
    Group { title: "Pulls", owner: "sandbox-manager", file: "services/sandbox-manager/src/config/pull.rs", rows: &[
        s("pull.at_once", "AT_ONCE_MAX", "images that are fetched at a time", "further ones wait", "berth.image.pull.duration", "so_many_images_are_pulled_at_once_and_the_next_goes_when_one_has_ended").from("Pull", "at_once"),
        s("pull.layers_at_once", "AT_ONCE_MAX", "layers of one image at a time", "further ones wait", "berth.image.pull.duration", "so_many_layers_come_at_once_and_the_next_begins_when_one_is_here").from("Pull", "layers_at_once"),
        n("AT_ONCE_MAX", "either of them that can be configured", KEY, NONE, SETTINGS),
        n("TRIES_MAX", "`pull.tries` that can be configured", KEY, NONE, SETTINGS),
        n("HOST_MAX", "a host in `pull.registries`, in bytes", KEY, NONE, SETTINGS),
    ] },
    Group { title: "Patience with registries", owner: "sandbox-manager", file: "services/lib/registry/src/settings.rs", rows: &[
        s("pull.tries", "", "tries of one request", "REGISTRY_UNREACHABLE or REGISTRY_BUSY", "berth.image.pull.duration", TRIES).from("Terms", "tries"),
        s("pull.no_progress_timeout", "", "how long no byte may come of an image", "PULL_STALLED", "berth.image.pull.duration", "a_registry_that_falls_silent_is_left_and_a_slow_one_is_not").from("Terms", "no_progress"),
        s("pull.retry_after_max", "", "how long a registry may ask to be left alone", "REGISTRY_BUSY at once", "berth.image.pull.duration", PAUSES).from("Terms", "retry_after_max"),
    ] },
    Group { title: "Pauses between tries", owner: "sandbox-manager", file: "services/lib/registry/src/retry.rs", rows: &[
        n("PAUSE_MAX", "the pause between two tries", "no longer, however many there were", NONE, PAUSES),
    ] },
    Group { title: "What registries answer", owner: "sandbox-manager", file: "services/lib/registry/src/http.rs", rows: &[
        n("REDIRECTS_MAX", "redirects of one request", "REGISTRY_PROTOCOL", "berth.image.pull.duration", "redirects_without_an_end_come_to_one"),
    ] },
    Group { title: "Files of credentials", owner: "sandbox-manager", file: "services/lib/registry/src/accounts.rs", rows: &[
        b("FILE_MAX", "the file of `pull.credentials_file`", "CREDENTIALS_UNREADABLE", "berth.image.pull.duration", "a_file_of_credentials_that_is_too_large_is_not_read"),
    ] },
    Group { title: "Archives and manifests", owner: "sandbox-manager", file: "services/lib/containerd/src/archive.rs", rows: &[
        n("ENTRIES_MAX", "files of an archive", "ARCHIVE_INVALID", CALLS, "an_archive_of_more_files_than_can_be_indexed_is_refused"),
        b("EXTENSION_MAX", "a long name in an archive", "ARCHIVE_INVALID", CALLS, "a_name_as_large_as_an_archive_is_not_read"),
    ] },
    Group { title: "Documents of images", owner: "sandbox-manager", file: "services/lib/containerd/src/oci.rs", rows: &[
        b("DOCUMENT_MAX", "a manifest, an index, a configuration", "IMAGE_CORRUPT", CALLS, "a_manifest_of_the_most_bytes_is_taken_and_one_more_byte_is_corrupt"),
        b("DOCUMENT_MAX", "the same in an archive", "ARCHIVE_INVALID", CALLS, "a_document_that_is_too_large_is_refused_before_it_is_read"),
        b("DOCUMENT_MAX", "the same of an image that others brought into containerd", "IMAGE_CORRUPT", CALLS, "a_manifest_of_others_has_at_most_the_bytes_of_a_document"),
        n("LAYERS_MAX", "layers of an image", "IMAGE_CORRUPT", CALLS, "more_layers_than_a_node_can_carry_are_corrupt"),
        n("LAYERS_MAX", "layers of an image in an archive of `docker save`", "ARCHIVE_INVALID", CALLS, "a_docker_archive_has_as_many_layers_as_a_node_can_carry"),
    ] },
    Group { title: "Indexes of images", owner: "sandbox-manager", file: "services/lib/containerd/src/walk.rs", rows: &[
        n("DEPTH_MAX", "indexes that lie in each other", "IMAGE_CORRUPT", CALLS, "a_chain_of_indexes_ends_at_the_limit"),
        n("DOCUMENTS_MAX", "documents of one image for this machine", "IMAGE_CORRUPT", CALLS, "more_documents_than_an_honest_image_has_are_refused"),
    ] },
    Group { title: "Pins", owner: "sandbox-manager", file: "services/lib/store/src/store/images.rs", rows: &[
        n("PINS_MAX", "images that are pinned", "IMAGE_PINS_EXHAUSTED", CALLS, "pins_are_kept_over_a_start_and_those_that_have_ended_make_room"),
    ] },
    Group { title: "Addresses", owner: "sandbox-manager", file: "services/lib/domain/src/subnets.rs", rows: &[
        n("RESERVED_MAX", "subnets that are reserved", "SUBNETS_EXHAUSTED", CALLS, "there_are_only_so_many_subnets"),
        b("IDENTIFIER_MAX", "the name of whom one is reserved for", "INVALID_FIELD with the field", CALLS, "an_identifier_is_a_line_of_text"),
    ] },
    Group { title: "IPv6", owner: "sandbox-manager", file: "services/lib/domain/src/ipam.rs", rows: &[
        n("PREFIX6_MAX", "the prefix length of `network.subnet6`", KEY, NONE, "a_subnet_of_ipv6_has_room_for_ipv4_and_can_be_routed"),
    ] },
    Group { title: "The catalog", owner: "sandbox-manager", file: "services/lib/domain/src/catalog.rs", rows: &[
        n("ENTRIES_MAX", "entries", "CATALOG_FULL; those that it has can be changed", CALLS, "a_full_catalog_takes_no_other_entry_and_changes_those_that_it_has"),
    ] },
    Group { title: "Processes beside the manager", owner: "sandbox-manager", file: "services/lib/domain/src/plugins.rs", rows: &[
        n("PLUGINS_MAX", "that are known", "the one that is AWAY longest makes room, else PLUGINS_EXHAUSTED", CALLS, "one_more_than_there_can_be_takes_the_place_of_the_one_that_is_away_longest"),
    ] },
    Group { title: "Leases on work", owner: "sandbox-manager", file: "services/lib/domain/src/work_leases.rs", rows: &[
        n("LEASES_MAX", "that are held", "WORK_LEASES_EXHAUSTED", "berth.work_lease.count", "one_more_lease_than_there_can_be_is_refused_by_its_reason"),
    ] },
    Group { title: "Objects that are being deleted", owner: "sandbox-manager", file: "services/lib/domain/src/claims.rs", rows: &[
        n("CLAIMS_MAX", "claims of one lease", "INVALID_FIELD with the field", CALLS, "one_more_claim_than_a_lease_can_have_is_refused_by_its_field"),
    ] },
    Group { title: "Reports of collections", owner: "sandbox-manager", file: "services/lib/domain/src/collection.rs", rows: &[
        n("NAMED_MAX", "objects that a run names", "all are counted, so many named", NONE, "a_run_names_so_many_failures_counts_all_and_keeps_the_first_reason_to_abort"),
        n("LARGEST_MAX", "objects that a missed goal is explained by", "INVALID_FIELD with the field", CALLS, "a_report_that_is_too_long_names_its_field"),
        n("RUNS_KEPT", "runs of each kind that are kept, and the latest scheduled one beside them", "the oldest goes", NONE, "the_latest_run_of_a_schedule_stays_however_many_others_follow"),
    ] },
    Group { title: "Changes that are kept", owner: "sandbox-manager", file: "services/lib/store/src/rows.rs", rows: &[
        n("CHANGES_KEPT", "changes from which a Watch is resumed", "REVISION_UNKNOWN: watch from the beginning", "berth.store.changes", "a_watch_from_a_forgotten_revision_is_refused_and_a_slow_reader_is_told"),
        n("CHANGES_KEPT_WHEN_FULL", "of these, each time that the disk turns out to be full", "REVISION_UNKNOWN: watch from the beginning", "berth.store.changes", "on_a_full_disk_a_watch_is_resumed_over_a_few_changes_and_not_over_one_more"),
    ] },
    Group { title: "Watches that fall behind", owner: "sandbox-manager", file: "services/lib/store/src/store.rs", rows: &[
        n("READER_LAG", "changes that wait for one who watches", "the stream ends: resume it", CALLS, "a_watch_from_a_forgotten_revision_is_refused_and_a_slow_reader_is_told"),
    ] },
    Group { title: "A full disk", owner: "sandbox-manager", file: "services/lib/store/src/reserve.rs", rows: &[
        b("RESERVE_BYTES", "disk that is held back for Delete", "Create is refused with STORE_FULL", "berth.store.size", "a_full_disk_refuses_what_begins_and_lets_everything_else_go_on"),
    ] },
    Group { title: "Where systemd makes the cgroups", owner: "sandbox-manager", file: "services/lib/cgroup/src/systemd.rs", rows: &[
        n("LIMIT", "how long systemd may take for a call", "RUNTIME_UNREACHABLE, and tried again", "berth.sandbox.troubled", "a_bus_that_is_not_there_or_never_answers_is_told_and_not_waited_for"),
        n("LIMIT", "how long a slice may take to stop", "RUNTIME_UNREACHABLE, and tried again", "berth.sandbox.troubled", "a_slice_that_never_stops_is_told_and_not_waited_for"),
    ] },
    Group { title: "A sandbox that hangs", owner: "sandbox-manager", file: "services/sandbox-manager/src/node.rs", rows: &[
        n("OBSERVE_LIMIT", "how long a look at one sandbox may take", "RUNTIME_UNREACHABLE of that sandbox, tried again", "berth.sandbox.troubled", "a_look_that_takes_too_long_is_told_of_and_tried_again"),
    ] },
];
