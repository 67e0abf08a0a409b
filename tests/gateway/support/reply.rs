//! What the fake Chat does with a call.

use std::sync::Arc;

use tokio::sync::watch;

/// What becomes of one call.
#[derive(Clone)]
pub(crate) struct Reply {
    pub(crate) gate: Option<Gate>,
    pub(crate) what: What,
}

/// The answer proper.
#[derive(Clone)]
pub(crate) enum What {
    /// What the follow graph says. A read sees the graph as it is when the call comes, a write
    /// changes it when the answer goes out.
    Model,
    /// A status, a Content-Type and a body.
    Answer { status: u16, content_type: Option<String>, body: Vec<u8> },
    /// Exactly these bytes, then the connection is closed.
    Bytes(Vec<u8>),
    /// Exactly these bytes, then silence on an open connection.
    Stall(Vec<u8>),
    /// `first`, then `more` again and again, until the peer closes.
    Endless { first: Vec<u8>, more: Vec<u8> },
    /// Exactly these bytes, then a TCP reset.
    Reset(Vec<u8>),
}

impl Reply {
    pub(crate) fn model() -> Reply {
        What::Model.into()
    }

    /// 200 with this JSON.
    pub(crate) fn json(body: impl Into<Vec<u8>>) -> Reply {
        Reply::status(200, body)
    }

    /// A status with this body as JSON.
    pub(crate) fn status(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply::typed(status, "application/json", body)
    }

    pub(crate) fn typed(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Reply {
        What::Answer { status, content_type: Some(content_type.to_owned()), body: body.into() }.into()
    }

    pub(crate) fn bytes(bytes: impl Into<Vec<u8>>) -> Reply {
        What::Bytes(bytes.into()).into()
    }

    pub(crate) fn reset() -> Reply {
        What::Reset(Vec::new()).into()
    }

    /// Not a byte, ever.
    pub(crate) fn hang() -> Reply {
        Reply::stall("")
    }

    pub(crate) fn stall(bytes: impl Into<Vec<u8>>) -> Reply {
        What::Stall(bytes.into()).into()
    }

    /// The same, once the gate is open.
    pub(crate) fn held(mut self, gate: &Gate) -> Reply {
        self.gate = Some(gate.clone());
        self
    }
}

impl From<What> for Reply {
    fn from(what: What) -> Reply {
        Reply { gate: None, what }
    }
}

/// Holds answers back until it is opened. Copies are the same gate.
#[derive(Clone)]
pub(crate) struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    pub(crate) fn closed() -> Gate {
        Gate(Arc::new(watch::Sender::new(false)))
    }

    /// Lets everything through that waits, and all that comes later.
    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(crate) async fn passed(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

/// An answer in bytes, with an honest length.
pub(crate) fn render(status: u16, content_type: Option<&str>, body: &[u8]) -> Vec<u8> {
    let content_type = content_type.map(|text| format!("Content-Type: {text}\r\n")).unwrap_or_default();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} Whatever\r\nServer: nginx\r\n{content_type}Content-Length: {length}\r\n\
         Connection: keep-alive\r\nAccess-Control-Allow-Origin: *\r\nSet-Cookie: upstream=1\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}
