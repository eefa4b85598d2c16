//! What the end-to-end tests stand on: a node of their own, images made here, and the proof that nothing is left.

pub mod certificates;
pub mod collectors;
pub mod exec;
pub mod faults;
pub mod hosts;
pub mod images;
pub mod leftovers;
pub mod logs;
pub mod node;
pub mod pacer;
pub mod packets;
pub mod pod;
pub mod private_registry;
pub mod registry;
pub mod specs;
pub mod terminal;

pub use node::TestNode;
