//! The warnings and the audit annotations of an admission response.

use super::{audit_annotations::audit_annotations, warnings::warnings};
use crate::{
    admission::{Request, ResponseExtras},
    burst::Decision,
    config::Settings,
};

/// Returns the warnings and the audit annotations of the response to `request`.
pub fn response_extras(
    request: &Request<'_>,
    settings: Option<&Settings<'_>>,
    decision: &Decision<'_>,
) -> ResponseExtras {
    ResponseExtras {
        warnings: warnings(request, settings, decision),
        audit_annotations: audit_annotations(request, settings, decision),
    }
}
