//! Replies of the fake Chat to a call.

use std::sync::Arc;

use tokio::sync::watch;

/// The reply to one call, and the gate that delays it.
#[derive(Clone)]
pub(crate) struct Reply {
    pub(crate) gate: Option<Gate>,
    pub(crate) kind: ReplyKind,
}

/// The content of a reply.
#[derive(Clone)]
pub(crate) enum ReplyKind {
    /// The result from the follow graph. A read sees the graph at the arrival of the call; a write changes the graph
    /// when the response is sent.
    FromGraph,
    /// A status, a Content-Type, and a body.
    Response { status: u16, content_type: Option<String>, body: Vec<u8> },
    /// Exactly these bytes, then a close of the connection.
    Bytes(Vec<u8>),
    /// Exactly these bytes, then silence on an open connection.
    Stall(Vec<u8>),
    /// `first`, then `more` repeatedly until the peer closes.
    Endless { first: Vec<u8>, more: Vec<u8> },
    /// Exactly these bytes, then a TCP reset.
    Reset(Vec<u8>),
}

impl Reply {
    pub(crate) fn from_graph() -> Reply {
        ReplyKind::FromGraph.into()
    }

    /// Returns a 200 with this JSON.
    pub(crate) fn json(body: impl Into<Vec<u8>>) -> Reply {
        Reply::status(200, body)
    }

    /// Returns this status with this body as JSON.
    pub(crate) fn status(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply::typed(status, "application/json", body)
    }

    pub(crate) fn typed(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Reply {
        ReplyKind::Response { status, content_type: Some(content_type.to_owned()), body: body.into() }.into()
    }

    pub(crate) fn bytes(bytes: impl Into<Vec<u8>>) -> Reply {
        ReplyKind::Bytes(bytes.into()).into()
    }

    pub(crate) fn reset() -> Reply {
        ReplyKind::Reset(Vec::new()).into()
    }

    /// Returns a reply that never sends a byte.
    pub(crate) fn hang() -> Reply {
        Reply::stall("")
    }

    pub(crate) fn stall(bytes: impl Into<Vec<u8>>) -> Reply {
        ReplyKind::Stall(bytes.into()).into()
    }

    /// Delays the reply until the gate is open.
    pub(crate) fn after(mut self, gate: &Gate) -> Reply {
        self.gate = Some(gate.clone());
        self
    }
}

impl From<ReplyKind> for Reply {
    fn from(what: ReplyKind) -> Reply {
        Reply { gate: None, kind: what }
    }
}

/// Delays replies until it is opened. Clones share one gate.
#[derive(Clone)]
pub(crate) struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    pub(crate) fn closed() -> Gate {
        Gate(Arc::new(watch::Sender::new(false)))
    }

    /// Releases all waiting replies and all later ones.
    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(crate) async fn wait_open(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

/// Returns the bytes of a response with a correct Content-Length.
pub(crate) fn render(status: u16, content_type: Option<&str>, body: &[u8]) -> Vec<u8> {
    let content_type = content_type.map(|text| format!("Content-Type: {text}\r\n")).unwrap_or_default();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} Whatever\r\nServer: nginx\r\n{content_type}Content-Length: {length}\r\n\
         Connection: keep-alive\r\nAccess-Control-Allow-Origin: *\r\nSet-Cookie: upstream=1\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}
