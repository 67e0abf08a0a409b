//! HTTP/2 callers with prior knowledge.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::client::TestRequest;
use super::response::Response;
use super::wire::Stream;
use super::{PATIENCE, within};

/// An HTTP/2 connection. Clones share it; each request has its own stream.
#[derive(Clone)]
pub(crate) struct Http2 {
    sender: SendRequest<Full<Bytes>>,
}

impl Http2 {
    pub(crate) async fn open(address: &str) -> Http2 {
        Http2::from_stream(TcpStream::connect(address).await.expect("accepted")).await
    }

    /// Uses a stream that is already connected.
    pub(crate) async fn from_stream(stream: impl Stream + 'static) -> Http2 {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
        tokio::spawn(connection);
        Http2 { sender }
    }

    pub(crate) async fn request(&self, request: &TestRequest) -> Response {
        let uri = format!("http://{}{}", request.host, request.target);
        let mut builder = hyper::Request::builder().method(request.method.as_str()).uri(uri);
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        let request = builder.body(Full::new(Bytes::copy_from_slice(&request.body))).expect("a request");
        let mut sender = self.sender.clone();
        within(PATIENCE, "a response over HTTP/2", async {
            sender.ready().await.expect("an open connection");
            let response = sender.send_request(request).await.expect("a response");
            let status = response.status().as_u16();
            let text = |value: &hyper::header::HeaderValue| value.to_str().expect("visible").to_owned();
            let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
            let body = response.into_body().collect().await.expect("a complete body").to_bytes().to_vec();
            Response::new(status, headers, body)
        })
        .await
    }
}
