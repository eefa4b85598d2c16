//! `berth health`: how a process of Berth is, as a probe asks it.

use serde::Serialize;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::Session;
use crate::{args::Health, errors::Failure};

/// Of a service that the process does not know.
const UNKNOWN: &str = "SERVICE_UNKNOWN";

pub(super) async fn check(session: &Session, args: Health) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Answer<'a> {
        service: &'a str,
        status: &'static str,
    }

    let service = args.service;
    let channel = match session.connect().await {
        Err(Failure::Unreachable { address, source }) => {
            return Err(Failure::NoProcess { address, source });
        }
        connected => connected?,
    };
    let request = session.request(HealthCheckRequest {
        service: service.clone(),
    });
    let status = match HealthClient::new(channel).check(request).await {
        Ok(answer) => answer.into_inner().status().as_str_name(),
        Err(status) if status.code() == Code::NotFound => UNKNOWN,
        Err(status) => return Err(status.into()),
    };
    session.output.object(
        &Answer {
            service: &service,
            status,
        },
        || status.to_owned(),
    )?;
    match status == ServingStatus::Serving.as_str_name() {
        true => Ok(()),
        false => Err(Failure::NotServing { service, status }),
    }
}
