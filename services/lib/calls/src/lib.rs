//! What every server of the contract does with every call: it is traced and measured, ends at its deadline, and is refused
//! while too many are under way. One function makes the layers; what a call does is its service's business.

mod deadline;
mod limit;
mod methods;
mod record;

use std::{sync::Arc, time::Duration};

use tower::layer::util::Stack;

use deadline::DeadlineLayer;
pub use deadline::patience;
use limit::LimitLayer;
use methods::Methods;
use record::RecordLayer;

/// What a server bears.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Unary calls under way at a time; health and reflection are not counted.
    pub unary_max: usize,
    /// Streams under way at a time, of all kinds. Some kinds have lower bounds of their own.
    pub streams_max: usize,
    /// Of a unary call whose caller sets no deadline.
    pub default_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unary_max: 1024,
            streams_max: 1024,
            default_deadline: Duration::from_secs(1800),
        }
    }
}

pub type Layers = Stack<DeadlineLayer, Stack<LimitLayer, RecordLayer>>;

/// The layers of a server, for `Server::builder().layer(…)`: it is measured what callers see, refusals as well.
pub fn layers(limits: Limits) -> Layers {
    let methods = Arc::new(Methods::of_contract());
    let record = RecordLayer::new(methods.clone());
    let limit = LimitLayer::new(methods.clone(), limits.unary_max, limits.streams_max);
    let deadline = DeadlineLayer::new(methods, limits.default_deadline);
    Stack::new(deadline, Stack::new(limit, record))
}
