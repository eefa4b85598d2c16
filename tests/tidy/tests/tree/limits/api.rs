//! What a call may have in it.

use super::{CALLS, Group, NONE, b, n};

const CREATE: &str = "what_is_at_a_bound_of_a_create_is_taken_and_one_more_is_refused_by_its_field";
const PROBE: &str = "what_is_at_a_bound_of_a_probe_is_taken_and_one_more_is_refused_by_its_field";
const ENTRY: &str = "what_cannot_be_kept_is_refused_by_its_field";
const BEAT: &str = "a_heartbeat_that_cannot_be_taken_names_its_field";
const LEASE: &str = "a_lease_that_cannot_be_asked_for_names_its_field";
const REPORT: &str = "a_report_that_is_too_long_names_its_field";
const EXEC: &str = "what_breaks_a_rule_is_refused_by_its_field";
const SECRET: &str = "credentials_are_a_user_with_a_password_or_a_token";
const BAD: &str = "INVALID_FIELD with the field";

#[rustfmt::skip]
pub(super) const ALL: &[Group] = &[
    Group { title: "A sandbox that is asked for", owner: "sandbox-manager", file: "services/lib/api/src/inbound.rs", rows: &[
        b("SPEC_MAX", "a spec, as it is sent", "SPEC_TOO_LARGE", CALLS, "a_spec_at_its_size_is_taken_and_one_that_is_a_byte_larger_is_refused"),
        n("CONTAINERS_MAX", "containers of a sandbox", BAD, CALLS, CREATE),
        n("PORTS_MAX", "ports of a container", BAD, CALLS, CREATE),
        n("ENV_MAX", "variables in the environment of a container", BAD, CALLS, CREATE),
        b("COMMAND_MAX", "a command, an argument, a variable", BAD, CALLS, CREATE),
        n("FILES_MAX", "configuration files of a container", BAD, CALLS, CREATE),
        b("FILE_MAX", "a configuration file", BAD, CALLS, CREATE),
        b("PATH_MAX", "a path", BAD, CALLS, CREATE),
        n("LABELS_MAX", "labels of a sandbox, and attributes of its logs", BAD, CALLS, CREATE),
        b("LABEL_KEY_MAX", "the key of a label", BAD, CALLS, CREATE),
        b("LABEL_VALUE_MAX", "the value of a label", BAD, CALLS, CREATE),
        b("NAME_MAX", "the name of a port, and its type", BAD, CALLS, CREATE),
        b("TEXT_MAX", "the version of a spec, and the entity of its logs", BAD, CALLS, CREATE),
        n("ROUTES_MAX", "routes of a sandbox", BAD, CALLS, CREATE),
        n("HOSTS_MAX", "names in `/etc/hosts`", BAD, CALLS, CREATE),
        b("HOST_NAME_MAX", "a name of a host", BAD, CALLS, CREATE),
        n("EGRESS_RULES_MAX", "rules of where a sandbox may go", BAD, CALLS, CREATE),
        n("PIDS_MAX", "processes and threads that can be asked for", BAD, CALLS, CREATE),
    ] },
    Group { title: "Names", owner: "every process that reads one", file: "services/lib/domain/src/id.rs", rows: &[
        b("SANDBOX_ID_MAX", "the id of a sandbox", BAD, CALLS, CREATE),
        b("CONTAINER_NAME_MAX", "the name of a container", BAD, CALLS, CREATE),
        b("INSTANCE_ID_MAX", "the id of an instance", "refused at the start, with the key", NONE,
            "what_is_at_the_bound_of_a_setting_of_the_manager_is_taken_and_one_more_is_refused"),
    ] },
    Group { title: "References of images", owner: "sandbox-manager", file: "services/lib/domain/src/image_ref.rs", rows: &[
        b("IMAGE_REF_MAX", "a reference", BAD, CALLS, CREATE),
    ] },
    Group { title: "Labels that are let in", owner: "sandbox-manager", file: "services/lib/domain/src/spec.rs", rows: &[
        n("ALLOW_FROM_MAX", "labels whose sandboxes may open connections to this one", BAD, CALLS, CREATE),
    ] },
    Group { title: "Names that a sandbox may ask for", owner: "sandbox-manager", file: "services/lib/domain/src/egress.rs", rows: &[
        b("NAME_MAX", "a name in a rule of egress", BAD, CALLS, CREATE),
        b("LABEL_MAX", "one part of it", BAD, CALLS, CREATE),
    ] },
    Group { title: "Readiness probes", owner: "sandbox-manager", file: "services/lib/api/src/inbound/probes.rs", rows: &[
        n("THRESHOLD_MAX", "successes or failures in a row", BAD, CALLS, PROBE),
        b("PATH_MAX", "the path of a request", BAD, CALLS, PROBE),
        n("ARGUMENTS_MAX", "words of a command", BAD, CALLS, PROBE),
        b("ARGUMENT_MAX", "one of them", BAD, CALLS, PROBE),
    ] },
    Group { title: "Words on ports", owner: "sandbox-manager", file: "services/sandbox-manager/src/rpc/sandboxes.rs", rows: &[
        b("SOURCE_MAX", "who reports a port", BAD, CALLS, "a_source_has_a_length_and_is_not_the_managers_own"),
    ] },
    Group { title: "Sightings of ports", owner: "sandbox-manager", file: "services/sandbox-manager/src/registry/reports.rs", rows: &[
        n("PORT_SIGHTINGS_MAX", "ports and sources in one record", "what is new is not kept; what is known goes on", NONE,
            "a_record_holds_so_many_sightings_and_those_that_it_has_go_on"),
    ] },
    Group { title: "Pages of lists", owner: "sandbox-manager", file: "services/sandbox-manager/src/rpc.rs", rows: &[
        n("PAGE_DEFAULT", "entries of a page, where the caller does not say", "the page ends, with a token for the next", NONE, "a_page_is_as_large_as_asked_for_up_to_its_bound_and_the_next_goes_on"),
        n("PAGE_MAX", "entries of a page, whatever the caller says", "the page ends, with a token for the next", NONE, "a_page_is_as_large_as_asked_for_up_to_its_bound_and_the_next_goes_on"),
    ] },
    Group { title: "Programs that are run in a container", owner: "sandbox-manager", file: "services/sandbox-manager/src/rpc/exec.rs", rows: &[
        n("WORDS_MAX", "words of the command, and as many variables", BAD, CALLS, EXEC),
        b("WORDS_BYTES_MAX", "all of them together", BAD, CALLS, EXEC),
        b("PATH_MAX", "the directory", BAD, CALLS, EXEC),
        b("USER_MAX", "the user", BAD, CALLS, EXEC),
        n("SIDE_MAX", "columns and rows of a terminal", BAD, CALLS, EXEC),
        n("WAITING", "messages of output that its caller has not read, on each half of their way to its connection", "the program waits", NONE, "a_caller_that_does_not_read_makes_the_program_wait"),
        b("STDIN_MAX", "one message of input", BAD, CALLS, "input_that_breaks_a_rule_is_refused_by_its_field"),
    ] },
    Group { title: "Copies and connections", owner: "sandbox-manager", file: "services/sandbox-manager/src/rpc/access.rs", rows: &[
        b("CHUNK_MAX", "one message of a copy", BAD, CALLS, "what_is_no_copy_is_refused_by_reason_and_leaves_nothing"),
        b("CHUNK_MAX", "one message of a connection", BAD, CALLS, "connections_that_begin_or_go_on_wrong_are_refused_by_field"),
    ] },
    Group { title: "Paths of copies", owner: "sandbox-manager", file: "services/sandbox-manager/src/rpc/copy.rs", rows: &[
        b("PATH_MAX", "a path", BAD, CALLS, "a_path_of_a_copy_is_as_long_as_the_kernels"),
    ] },
    Group { title: "Logs that are asked for", owner: "sandbox-manager", file: "services/sandbox-manager/src/rpc/logs.rs", rows: &[
        n("TAIL_MAX", "lines from the end", BAD, CALLS, "each_bad_request_is_refused_by_its_field"),
        n("ENTRIES_MAX", "entries of one message", "the next message goes on", NONE, "a_response_is_bounded_and_each_cursor_goes_on_behind_it"),
        b("TEXT_BYTES", "text of one message, before its last entry", "the next message goes on", NONE, "a_response_is_bounded_and_each_cursor_goes_on_behind_it"),
    ] },
    Group { title: "Cursors of logs", owner: "sandbox-manager", file: "services/lib/logs/src/cursor.rs", rows: &[
        b("TEXT_MAX", "a cursor", BAD, CALLS, "each_bad_request_is_refused_by_its_field"),
    ] },
    Group { title: "Archives on their way in", owner: "sandbox-manager", file: "services/sandbox-manager/src/rpc/images.rs", rows: &[
        b("CHUNK_MAX", "one message of an archive", BAD, CALLS, "messages_that_are_no_next_bytes_are_refused_by_field"),
    ] },
    Group { title: "Credentials for registries", owner: "sandbox-manager", file: "services/sandbox-manager/src/rpc/pulls.rs", rows: &[
        b("USERNAME_MAX", "a user", BAD, CALLS, SECRET),
        b("PASSWORD_MAX", "a password", BAD, CALLS, SECRET),
        b("TOKEN_MAX", "a token", BAD, CALLS, SECRET),
    ] },
    Group { title: "Orders to the node", owner: "sandbox-manager", file: "services/sandbox-manager/src/rpc/node.rs", rows: &[
        b("DRAIN_MESSAGE_MAX", "why a node is drained", BAD, CALLS, "why_a_node_is_drained_and_how_long_an_audit_settles_have_bounds"),
        n("SETTLE_MAX", "how long an audit waits between its looks", BAD, CALLS, "why_a_node_is_drained_and_how_long_an_audit_settles_have_bounds"),
    ] },
    Group { title: "Orphans that are to be removed", owner: "sandbox-manager", file: "services/sandbox-manager/src/rpc/orphans.rs", rows: &[
        n("TOKENS_MAX", "objects of one call", BAD, CALLS, "tokens_are_some_and_not_too_many_and_fit"),
        b("TOKEN_MAX", "the token of an object", BAD, CALLS, "tokens_are_some_and_not_too_many_and_fit"),
        n("OBJECT_TIMEOUT_MAX", "how long one object may take", BAD, CALLS, "an_object_may_take_from_one_second_to_five_minutes"),
    ] },
    Group { title: "Entries of the catalog", owner: "sandbox-manager", file: "services/lib/api/src/catalog.rs", rows: &[
        b("NAME_MAX", "ids and names of apps and services", BAD, CALLS, ENTRY),
        b("VERSION_MAX", "the id of a version", BAD, CALLS, ENTRY),
        b("ARTIFACT_ID_MAX", "the id of an artifact", BAD, CALLS, ENTRY),
        n("BLOBS_MAX", "blobs of an artifact", BAD, CALLS, ENTRY),
        n("LABELS_MAX", "labels of a service", BAD, CALLS, ENTRY),
        b("LABEL_KEY_MAX", "the key of one", BAD, CALLS, ENTRY),
        b("LABEL_VALUE_MAX", "its value", BAD, CALLS, ENTRY),
        n("PORTS_MAX", "ports of a service", BAD, CALLS, ENTRY),
        n("ADDRESSES_MAX", "addresses of a host", BAD, CALLS, ENTRY),
    ] },
    Group { title: "Heartbeats of plugins", owner: "sandbox-manager", file: "services/lib/api/src/plugins.rs", rows: &[
        b("NAME_MAX", "the name of a plugin", BAD, CALLS, BEAT),
        b("INSTANCE_MAX", "which of several it is", BAD, CALLS, BEAT),
        b("VERSION_MAX", "its version", BAD, CALLS, BEAT),
        b("ADDRESS_MAX", "where it answers", BAD, CALLS, BEAT),
        b("REASON_MAX", "why it does not serve", BAD, CALLS, BEAT),
        b("RESULT_MAX", "what came of its last run", BAD, CALLS, BEAT),
        n("TIME_TO_LIVE", "how long it may be silent before it is AWAY, where it does not say", "AWAY", NONE, "a_process_is_as_it_says_until_it_is_silent_and_is_forgotten_in_the_end"),
        n("TIME_TO_LIVE_MAX", "how long it may ask for", BAD, CALLS, BEAT),
    ] },
    Group { title: "Leases on work, and what is done under them", owner: "sandbox-manager", file: "services/lib/api/src/collection.rs", rows: &[
        b("LEASE_NAME_MAX", "the name of a lease, and its holder", BAD, CALLS, LEASE),
        n("TIME_TO_LIVE_MAX", "how long it may be asked for at a time", BAD, CALLS, LEASE),
        n("ATTRIBUTES_MAX", "attributes of a lease", BAD, CALLS, LEASE),
        b("ATTRIBUTE_KEY_MAX", "the key of one", BAD, CALLS, LEASE),
        b("ATTRIBUTE_VALUE_MAX", "its value", BAD, CALLS, LEASE),
        n("LEASES_PER_CALL", "leases of one call", BAD, CALLS, LEASE),
        n("BATCH_MAX", "objects of one call", BAD, CALLS, "a_batch_has_images_and_blobs_by_digest"),
        b("WORDS_MAX", "a name or a reason in a report", BAD, CALLS, REPORT),
    ] },
    Group { title: "Answers that are errors", owner: "every server", file: "services/lib/api/src/failures.rs", rows: &[
        n("VIOLATIONS_MAX", "fields that one error names", "further ones are left out", NONE, "so_many_fields_are_named_and_so_much_of_each_text_is_told"),
        b("TEXT_MAX", "a text in an error", "cut, with `…`", NONE, "so_many_fields_are_named_and_so_much_of_each_text_is_told"),
        b("TEXTS_MAX", "all texts of an error, each as often as it is told", "what does not fit is cut or left out", NONE, "an_answer_fits_into_a_header_however_much_was_wrong"),
    ] },
    Group { title: "Figures that are asked for", owner: "metrics", file: "services/metrics/src/rpc.rs", rows: &[
        n("IDS_MAX", "sandboxes that one call names", BAD, CALLS, "what_is_asked_wrongly_is_refused_by_field"),
        n("SECONDS_MAX", "seconds between two samples", BAD, CALLS, "what_is_asked_wrongly_is_refused_by_field"),
    ] },
];
