//! What went over the links of the node, from the kernel's table of them.

use std::{collections::HashMap, fs, io};

use berth_domain::usage::Traffic;

const TABLE: &str = "/proc/net/dev";

/// By the name of the node's end, as the other end sees it.
pub(crate) fn read() -> io::Result<HashMap<String, Traffic>> {
    Ok(parse(&fs::read_to_string(TABLE)?))
}

/// Lines of a name and sixteen figures; what one end receives, the other has sent.
fn parse(table: &str) -> HashMap<String, Traffic> {
    let link = |line: &str| {
        let (name, figures) = line.split_once(':')?;
        let figures: Vec<u64> = figures
            .split_whitespace()
            .map_while(|it| it.parse().ok())
            .collect();
        let [
            sent_bytes,
            sent_packets,
            _,
            sent_drops,
            _,
            _,
            _,
            _,
            rest @ ..,
        ] = figures.as_slice()
        else {
            return None;
        };
        let [received_bytes, received_packets, _, received_drops, ..] = rest else {
            return None;
        };
        let traffic = Traffic {
            received_bytes: *received_bytes,
            sent_bytes: *sent_bytes,
            received_packets: *received_packets,
            sent_packets: *sent_packets,
            received_drops: *received_drops,
            sent_drops: *sent_drops,
        };
        Some((name.trim().to_owned(), traffic))
    };
    table.lines().filter_map(link).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_nodes_end_receives_the_sandbox_has_sent() {
        let table = "\
            Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n\
             bt0102030405: 10 1 99 2 99 99 99 99 20 3 99 4 99 99 99 99\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n";
        let links = parse(table);
        let expected = Traffic {
            received_bytes: 20,
            sent_bytes: 10,
            received_packets: 3,
            sent_packets: 1,
            received_drops: 4,
            sent_drops: 2,
        };
        assert_eq!(links.get("bt0102030405"), Some(&expected));
        assert_eq!(links.len(), 2);
    }

    #[test]
    fn this_kernels_table_is_read() {
        assert!(read().unwrap().contains_key("lo"));
    }
}
