//! What a caller says, on its way in: the first message is looked at as it passes, and may be waited for for so long only.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use berth_domain::{Failure, Reason};
use bytes::{Buf as _, Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use tokio::time::Sleep;
use tonic::{Status, body::Body};

/// What the server library takes of a message; it refuses what is longer by its head.
const MESSAGE_MAX: usize = 4 << 20;
/// Whether a message is compressed, and its length.
const HEAD: usize = 5;

/// The object that a call names in its first message, once that is here.
pub(crate) type Slot = Arc<OnceLock<String>>;

pub(crate) struct Arriving {
    body: Body,
    first: Option<First>,
    limit: Option<Pin<Box<Sleep>>>,
}

struct First {
    bytes: BytesMut,
    name: fn(&str, &[u8]) -> String,
    path: String,
    slot: Slot,
}

impl Arriving {
    pub(crate) fn new(body: Body) -> Self {
        Self {
            body,
            first: None,
            limit: None,
        }
    }

    /// Has `name` look at the first message of a call to `path`.
    pub(crate) fn looked_at(
        mut self,
        path: &str,
        slot: Slot,
        name: fn(&str, &[u8]) -> String,
    ) -> Self {
        self.first = Some(First {
            bytes: BytesMut::new(),
            name,
            path: path.to_owned(),
            slot,
        });
        self
    }

    /// Has it fail unless all of it is here in this time.
    pub(crate) fn within(mut self, limit: Duration) -> Self {
        self.limit = Some(Box::pin(tokio::time::sleep(limit)));
        self
    }
}

impl First {
    /// Whether that is all that is wanted.
    fn takes(&mut self, data: &Bytes) -> bool {
        self.bytes.extend_from_slice(data);
        if self.bytes.len() < HEAD {
            return false;
        }
        let mut head = &self.bytes[..HEAD];
        let compressed = head.get_u8() != 0;
        let length = head.get_u32() as usize;
        if compressed || length > MESSAGE_MAX {
            return true;
        }
        let Some(message) = self.bytes.get(HEAD..HEAD + length) else {
            return false;
        };
        let _ = self.slot.set((self.name)(&self.path, message));
        true
    }
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { body, first, limit } = &mut *self;
        let polled = Pin::new(body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(data), Some(it)) = (frame.data_ref(), first.as_mut())
                    && it.takes(data)
                {
                    *first = None;
                }
            }
            // What was late is told once.
            Poll::Ready(None | Some(Err(_))) => *limit = None,
            Poll::Pending => {}
        }
        if let Some(waits) = limit
            && waits.as_mut().poll(context).is_ready()
        {
            *limit = None;
            let failure =
                Failure::new(Reason::DeadlinePassed, "the request did not arrive in time");
            return Poll::Ready(Some(Err(berth_api::status(failure))));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
