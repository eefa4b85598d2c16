//! What every server of the contract does with every call: it is traced and measured, ends at its deadline, is no whole one
//! where its caller breaks it off, and is refused while too many are under way, or where its caller has no role for it. One
//! function makes the layers; what a call does is its service's business.

mod access;
mod arrival;
mod caller;
mod cancel;
mod deadline;
mod each;
mod ending;
mod limit;
mod methods;
mod objects;
mod record;
mod roles;
mod trail;

use std::{sync::Arc, time::Duration};

use tower::layer::util::Stack;

pub use access::Access;
use access::AccessRule;
pub use caller::{Caller, Certificate, Identity, Sockets};
use cancel::CancelRule;
use deadline::DeadlineRule;
pub use deadline::patience;
use each::Each;
pub use each::Keeping;
use limit::LimitRule;
use methods::Methods;
pub use methods::is_about_the_server;
use record::RecordRule;
pub use roles::{Role, Roles};
pub use trail::{Trail, TrailSettings};

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

pub type Layers = Stack<
    Each<CancelRule>,
    Stack<Each<DeadlineRule>, Stack<Each<LimitRule>, Stack<Each<AccessRule>, Each<RecordRule>>>>,
>;

/// The layers of a server, for `Server::builder().layer(…)`: it is measured what callers see, refusals as well, and who may
/// not call takes no place. Without `access` whoever can connect may do everything, and nothing is written down.
pub fn layers(limits: Limits, access: Option<Access>) -> Layers {
    let methods = Arc::new(Methods::of_contract());
    let record = RecordRule::new(methods.clone());
    let access = AccessRule::new(methods.clone(), access);
    let limit = LimitRule::new(methods.clone(), limits.unary_max, limits.streams_max);
    let deadline = DeadlineRule::new(methods, limits.default_deadline);
    let outer = Stack::new(Each(limit), Stack::new(Each(access), Each(record)));
    Stack::new(Each(CancelRule), Stack::new(Each(deadline), outer))
}
