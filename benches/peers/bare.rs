//! A bare hyper server: the machine's limit.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

/// Answers every request with the same bytes.
pub(crate) async fn serve(address: SocketAddr, answer: &str) {
    let answer = Bytes::from(std::fs::read(answer).expect("a file"));
    let listener = tokio::net::TcpListener::bind(address).await.expect("a free port");
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).expect("a socket");
        let answer = answer.clone();
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let answer = answer.clone();
            async move {
                let _ = request.into_body().collect().await;
                let mut response = Response::new(Full::new(answer));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                Ok::<_, Infallible>(response)
            }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}
