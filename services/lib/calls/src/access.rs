//! Lets a call through if one of its caller's roles may make it, and writes down who changed what.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use berth_domain::{Failure, Reason};
use http::{Request, Response};
use tonic::{Status, body::Body};
use tonic_types::StatusExt as _;
use tower::Service;

use crate::{
    arrival::{Arriving, Slot},
    caller::{Caller, Identity, Sockets},
    each::{Answer, Rule},
    ending::{Listener, UnderWay, name},
    methods::{Methods, Shape},
    objects::{cut, named},
    roles::{Effect, Roles, allowed, effect, may},
    trail::{Entry, Trail, Who, now},
};

/// How long the request of a unary call may be on its way from another host.
const ARRIVAL_MAX: Duration = Duration::from_secs(30);
const METHOD_MAX: usize = 128;

/// Who may call a server, and where that is written down.
#[derive(Clone, Debug)]
pub struct Access {
    pub sockets: Sockets,
    pub trail: Trail,
}

impl Access {
    /// On a Unix socket of a process that others than root may look at.
    pub fn for_looking() -> Self {
        Self {
            sockets: Sockets::read_only(),
            trail: Trail::without_file(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct AccessRule {
    methods: Arc<Methods>,
    /// `None`: whoever can connect may do everything.
    access: Option<Access>,
    arrival: Duration,
}

impl AccessRule {
    pub(crate) fn new(methods: Arc<Methods>, access: Option<Access>) -> Self {
        Self {
            methods,
            access,
            arrival: ARRIVAL_MAX,
        }
    }
}

impl Rule for AccessRule {
    fn call<S>(&self, inner: &mut S, request: Request<Body>) -> Answer<S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
        S::Future: Send + 'static,
    {
        let Some(access) = &self.access else {
            return Box::pin(inner.call(request));
        };
        let path = request.uri().path().to_owned();
        let caller = access.sockets.caller(request.extensions());
        let denied = !may(caller.roles, &path);
        let slot = Slot::default();
        let recorded = denied || effect(&path) == Effect::Changes;
        let call = recorded.then(|| {
            UnderWay::new(Recorded {
                trail: access.trail.clone(),
                method: cut(path.trim_start_matches('/').to_owned(), METHOD_MAX),
                caller: caller.clone(),
                denied,
                slot: slot.clone(),
                began: Instant::now(),
            })
        });
        if denied {
            let response = berth_api::status(role_denied(caller.roles, &path)).into_http();
            return Box::pin(async move { Ok(told(call, response)) });
        }
        let far = matches!(caller.identity, Identity::Certificate(_));
        let unary = matches!(self.methods.find(&path), Some((_, Shape::Unary)));
        let request = request.map(|body| {
            let mut body = Arriving::new(body);
            if recorded {
                body = body.looked_at(&path, slot, named);
            }
            if far && unary {
                body = body.within(self.arrival);
            }
            Body::new(body)
        });
        let answer = inner.call(request);
        Box::pin(async move {
            // It is under way from here on, also when its caller goes away before it is answered.
            let call = call;
            Ok(told(call, answer.await?))
        })
    }
}

fn told(call: Option<UnderWay<Recorded>>, response: Response<Body>) -> Response<Body> {
    match call {
        Some(call) => call.told_by(response),
        None => response,
    }
}

fn role_denied(roles: Roles, path: &str) -> Failure {
    let method = cut(path.trim_start_matches('/').to_owned(), METHOD_MAX);
    let allowed = allowed(path);
    let message = format!("{method} is for the roles {allowed}; the caller's are {roles}");
    Failure::new(Reason::RoleDenied, message)
        .with("method", method)
        .with("roles", roles)
        .with("allowed", allowed)
}

/// A call that is written down at its end.
struct Recorded {
    trail: Trail,
    method: String,
    caller: Caller,
    denied: bool,
    slot: Arc<OnceLock<String>>,
    began: Instant,
}

impl Listener for Recorded {
    fn ended(&mut self, status: &Status) {
        let details = status.get_error_details();
        let reason = details.error_info().map(|it| it.reason.clone());
        let entry = Entry {
            time: now(),
            method: std::mem::take(&mut self.method),
            object: self.slot.get().cloned().unwrap_or_default(),
            caller: Who::from(&self.caller.identity),
            roles: self.caller.roles.to_string(),
            code: name(status.code()),
            reason: reason.unwrap_or_default(),
            duration_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            denied_before: 0,
        };
        self.trail.take(entry, self.denied);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        fs,
        path::Path,
        pin::Pin,
        task::{Context, Poll},
    };

    use berth_api::v1;
    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Full};
    use prost::Message as _;
    use tonic::Code;
    use tower::{Layer as _, service_fn};

    use super::*;
    use crate::{caller::Certificate, each::Each, roles::Role, trail::TrailSettings};

    fn access(file: &Path) -> Access {
        let settings = TrailSettings {
            file: Some(file.to_owned()),
            max_bytes: 1 << 20,
            files: 1,
        };
        Access {
            sockets: Sockets::default(),
            trail: Trail::start(settings).unwrap(),
        }
    }

    fn request(method: &str, role: Option<Role>, message: &[u8]) -> Request<Body> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        bytes.extend(message);
        let mut request = Request::new(Body::new(Full::new(Bytes::from(bytes))));
        *request.uri_mut() = format!("/berth.v1.{method}").parse().unwrap();
        request.extensions_mut().insert(Caller {
            roles: role.map_or(Roles::NONE, |it| Roles::of(&[it])),
            identity: Identity::Certificate(Arc::new(Certificate {
                subject: "CN=somebody".into(),
                serial: "07".into(),
                address: "10.0.0.1:7".parse().unwrap(),
            })),
        });
        request
    }

    async fn call(access: &Access, request: Request<Body>) -> Status {
        let methods = Arc::new(Methods::of_contract());
        let rule = AccessRule::new(methods, Some(access.clone()));
        let mut service = Each(rule).layer(service_fn(|it: Request<Body>| async move {
            let _ = it.into_body().collect().await;
            let status = Status::not_found("no such sandbox");
            Ok::<_, Infallible>(status.into_http())
        }));
        let answer = service.call(request).await.unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        drop(answer);
        status
    }

    #[tokio::test]
    async fn who_has_no_role_for_it_is_told_which_have_and_both_are_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("audit.log");
        let access = access(&file);
        let delete = v1::DeleteRequest {
            id: "web".into(),
            ..v1::DeleteRequest::default()
        };
        let delete = delete.encode_to_vec();
        const DELETE: &str = "SandboxService/Delete";
        let denied = call(&access, request(DELETE, Some(Role::Gc), &delete)).await;
        assert_eq!(denied.code(), Code::PermissionDenied);
        let details = denied.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(info.reason, "ROLE_DENIED");
        assert_eq!(info.metadata["method"], format!("berth.v1.{DELETE}"));
        assert_eq!(info.metadata["roles"], "gc");
        assert_eq!(info.metadata["allowed"], "admin,control-plane");
        let allowed = call(&access, request(DELETE, Some(Role::ControlPlane), &delete)).await;
        assert_eq!(allowed.code(), Code::NotFound, "it got through");
        let looked = call(
            &access,
            request("SandboxService/Get", Some(Role::ReadOnly), &delete),
        );
        assert_eq!(looked.await.code(), Code::NotFound);
        let nobody = call(&access, request("SandboxService/Get", None, &delete)).await;
        assert_eq!(nobody.code(), Code::PermissionDenied);

        access.trail.finish();
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|it| serde_json::from_str(it).unwrap())
            .collect();
        let told = |at: usize| {
            let it = &lines[at];
            let text = |key: &str| it[key].as_str().unwrap_or_default().to_owned();
            (text("object"), text("roles"), text("code"), text("reason"))
        };
        let row = |it: [&str; 4]| (it[0].into(), it[1].into(), it[2].into(), it[3].into());
        assert_eq!(told(0), row(["", "gc", "PERMISSION_DENIED", "ROLE_DENIED"]));
        assert_eq!(told(1), row(["web", "control-plane", "NOT_FOUND", ""]));
        assert_eq!(
            told(2),
            row(["", "none", "PERMISSION_DENIED", "ROLE_DENIED"])
        );
        assert_eq!(lines.len(), 3, "a look is not written down: {text}");
        assert_eq!(lines[1]["caller"]["subject"], "CN=somebody");
    }

    #[tokio::test]
    async fn a_request_from_another_host_that_never_ends_is_ended() {
        struct Never;
        impl http_body::Body for Never {
            type Data = Bytes;
            type Error = Status;
            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
                Poll::Pending
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let access = access(&dir.path().join("audit.log"));
        let rule = AccessRule {
            arrival: Duration::from_millis(1),
            ..AccessRule::new(Arc::new(Methods::of_contract()), Some(access.clone()))
        };
        let mut service = Each(rule).layer(service_fn(|it: Request<Body>| async move {
            let late = it.into_body().collect().await.map(drop).unwrap_err();
            Ok::<_, Infallible>(late.into_http())
        }));
        let stalled = |method, role| request(method, role, &[]).map(|_| Body::new(Never));
        let answer = service.call(stalled("SandboxService/Delete", Some(Role::Admin)));
        let answer = tokio::time::timeout(Duration::from_secs(10), answer).await;
        let answer = answer.expect("it is ended").unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "DEADLINE_PASSED");

        // Whoever is on this host, and whoever streams, may take his time.
        let mut near = stalled("SandboxService/Delete", None);
        near.extensions_mut().insert(Caller {
            roles: Roles::ALL,
            identity: Identity::Unknown,
        });
        let streams = stalled("SandboxService/CopyTo", Some(Role::Admin));
        for patient in [near, streams] {
            let waits = tokio::time::timeout(Duration::from_millis(50), service.call(patient));
            assert!(waits.await.is_err());
        }
        access.trail.finish();
    }
}
