//! Packets: who reaches whom, by which address and name, and what rules say.

mod admitted;
mod connections;
mod dns;
mod egress_names;
mod firewalls;
mod host_network;
mod network;
mod network6;
mod port_forward;
mod slots;
mod subnets;
mod ways;
