//! Limits of size, time and memory for request bodies.

use std::time::Duration;

/// Maximum size of a body. A review contains two objects (`object` and `oldObject`) of at most 3 MiB. JSON escapes and
/// the envelope need the rest. kubernetes-sigs/controller-runtime `pkg/webhook/admission/http.go` has the same limit.
pub(super) const MAX_BODY_BYTES: usize = 7 * 1024 * 1024;

/// Time to read a body, which is part of [`super::fail_open::POD_REVIEW_TIMEOUT`]. 7 MiB in a second is 60 Mbit/s.
pub(super) const BODY_READ_TIMEOUT: Duration = Duration::from_secs(1);

/// Memory for all large bodies, in units of [`SMALL_BODY_BYTES`]. It is 32 MiB, or 64 MiB while hyper joins the chunks of
/// a body. A body holds its permits from its first byte to its response.
pub(super) const LARGE_BODY_PERMITS: usize = 32 * 1024 * 1024 / SMALL_BODY_BYTES;

/// Maximum size of a body that needs no permit. Ordinary reviews have about ten kilobytes. They must not wait for a
/// client that announces megabytes and sends nothing. The connection limit bounds their memory.
pub(super) const SMALL_BODY_BYTES: usize = 64 * 1024;
