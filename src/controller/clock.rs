//! The time of the API server. The API server verifies the certificates, so its clock decides.

use axum::http::{Request, header::DATE};
use kube::{Client, client::Body};
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

/// Why the time is unknown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClockError {
    /// The API server did not respond.
    #[error("cannot ask the API server for the time")]
    Ask(#[source] kube::Error),
    /// The response has no date.
    #[error("the API server's response has no date")]
    NoDate,
}

/// Returns the date of a response. Every HTTP server with a clock sends a date (RFC 9110, section 6.6.1), and every account may read
/// `/version`.
pub(super) async fn server_time(client: &Client) -> Result<OffsetDateTime, ClockError> {
    let request = Request::get("/version").body(Body::empty()).map_err(|_static_parts| ClockError::NoDate)?;
    let answer = client.send(request).await.map_err(ClockError::Ask)?;
    let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok()).ok_or(ClockError::NoDate)?;
    read(date).ok_or(ClockError::NoDate)
}

/// Reads a date such as `Sun, 06 Nov 1994 08:49:37 GMT`, which is also valid in RFC 2822.
fn read(date: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(date, &Rfc2822).ok()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn reads_the_date_of_a_response() {
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(datetime!(1994-11-06 08:49:37 UTC)));
        assert_eq!(read("yesterday"), None);
    }
}
