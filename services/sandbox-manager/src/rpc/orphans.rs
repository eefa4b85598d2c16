//! `OrphanService`.

use std::time::Duration;

use berth_api::{
    collection::lease_ref_from_proto,
    v1::{self, OrphanOutcome, orphan_service_server::OrphanService},
};
use berth_domain::{Failure, work_leases::LeaseRef};
use berth_platform::{Images, Network, Runtime};
use tonic::{Request, Response, Status};

use super::refuse;
use crate::{
    orphans::{Answer, LEASE, end_orphans, remove_orphans},
    registry::Registry,
};

const TOKENS_MAX: usize = 256;
const TOKEN_MAX: usize = 1024;
const OBJECT_TIMEOUT: Duration = Duration::from_secs(60);
const OBJECT_TIMEOUT_MIN: Duration = Duration::from_secs(1);
const OBJECT_TIMEOUT_MAX: Duration = Duration::from_secs(300);

pub(crate) struct OrphanRpc<R, N> {
    pub(crate) registry: Registry<R, N>,
}

#[tonic::async_trait]
impl<R: Runtime + Images, N: Network> OrphanService for OrphanRpc<R, N> {
    async fn end_orphans(
        &self,
        request: Request<v1::EndOrphansRequest>,
    ) -> Result<Response<v1::EndOrphansResponse>, Status> {
        let v1::EndOrphansRequest { lease, tokens } = request.into_inner();
        let lease = own_lease(lease).map_err(refuse)?;
        check(&tokens).map_err(refuse)?;
        let (registry, asked) = (self.registry.clone(), tokens.clone());
        let ended = async move { end_orphans(&registry, &lease, &asked).await };
        let answers = self.registry.see_through(ended).await.map_err(refuse)?;
        Ok(Response::new(v1::EndOrphansResponse {
            answers: render(tokens, answers),
        }))
    }

    async fn remove_orphans(
        &self,
        request: Request<v1::RemoveOrphansRequest>,
    ) -> Result<Response<v1::RemoveOrphansResponse>, Status> {
        let v1::RemoveOrphansRequest {
            lease,
            tokens,
            object_timeout,
        } = request.into_inner();
        let lease = own_lease(lease).map_err(refuse)?;
        check(&tokens).map_err(refuse)?;
        let limit = object_limit(object_timeout).map_err(refuse)?;
        let (registry, asked) = (self.registry.clone(), tokens.clone());
        let removed = async move { remove_orphans(&registry, &lease, &asked, limit).await };
        let answers = self.registry.see_through(removed).await.map_err(refuse)?;
        Ok(Response::new(v1::RemoveOrphansResponse {
            answers: render(tokens, answers),
        }))
    }
}

fn own_lease(lease: Option<v1::WorkLeaseRef>) -> Result<LeaseRef, Failure> {
    let lease = lease_ref_from_proto(lease)?;
    match lease.name.as_str() {
        LEASE => Ok(lease),
        _ => Err(Failure::invalid("lease.name", format!("must be `{LEASE}`"))),
    }
}

fn check(tokens: &[String]) -> Result<(), Failure> {
    if !(1..=TOKENS_MAX).contains(&tokens.len()) {
        let problem = format!("must be 1 to {TOKENS_MAX}");
        return Err(Failure::invalid("tokens", problem));
    }
    let fits = |it: &String| (1..=TOKEN_MAX).contains(&it.len());
    match tokens.iter().position(|it| !fits(it)) {
        None => Ok(()),
        Some(place) => {
            let problem = format!("must be 1 to {TOKEN_MAX} bytes");
            Err(Failure::invalid(format!("tokens[{place}]"), problem))
        }
    }
}

fn object_limit(asked: Option<prost_types::Duration>) -> Result<Duration, Failure> {
    let Some(asked) = asked else {
        return Ok(OBJECT_TIMEOUT);
    };
    match Duration::try_from(asked) {
        Ok(it) if (OBJECT_TIMEOUT_MIN..=OBJECT_TIMEOUT_MAX).contains(&it) => Ok(it),
        Ok(_) | Err(_) => Err(Failure::invalid("object_timeout", "must be 1 s to 5 min")),
    }
}

fn render(tokens: Vec<String>, answers: Vec<Answer>) -> Vec<v1::OrphanAnswer> {
    let render = |(token, answer)| {
        let (outcome, message) = match answer {
            Answer::Orphan => (OrphanOutcome::Orphan, String::new()),
            Answer::Gone => (OrphanOutcome::Gone, String::new()),
            Answer::Explained(who) => (OrphanOutcome::Explained, who),
            Answer::Failed(error) => (OrphanOutcome::Failed, error),
        };
        v1::OrphanAnswer {
            token,
            outcome: outcome.into(),
            message,
        }
    };
    tokens.into_iter().zip(answers).map(render).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field<T: std::fmt::Debug>(refused: Result<T, Failure>) -> String {
        refused.unwrap_err().violations.remove(0).field
    }

    #[test]
    fn only_the_lease_of_the_watchdog_counts() {
        let lease = |name: &str| {
            own_lease(Some(v1::WorkLeaseRef {
                name: name.to_owned(),
                token: 7,
            }))
        };
        assert_eq!(lease("watchdog").unwrap().token, 7);
        assert_eq!(field(lease("image-gc/images/00")), "lease.name");
        assert_eq!(field(own_lease(None)), "lease");
    }

    #[test]
    fn tokens_are_some_and_not_too_many_and_fit() {
        let tokens = |count: usize, length: usize| check(&vec!["x".repeat(length); count]);
        assert!(tokens(1, 1).is_ok() && tokens(TOKENS_MAX, TOKEN_MAX).is_ok());
        assert_eq!(field(tokens(0, 1)), "tokens");
        assert_eq!(field(tokens(TOKENS_MAX + 1, 1)), "tokens");
        assert_eq!(field(tokens(2, 0)), "tokens[0]");
        assert_eq!(field(tokens(1, TOKEN_MAX + 1)), "tokens[0]");
    }

    #[test]
    fn an_object_may_take_from_one_second_to_five_minutes() {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        assert_eq!(object_limit(None).unwrap(), OBJECT_TIMEOUT);
        assert_eq!(object_limit(seconds(300)).unwrap(), OBJECT_TIMEOUT_MAX);
        for bad in [-1, 0, 301] {
            assert_eq!(field(object_limit(seconds(bad))), "object_timeout");
        }
    }
}
