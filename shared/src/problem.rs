//! The registry of problems: every refusal of the server, and what the caller should do about it.

use serde::{Deserialize, Serialize};

use crate::attestation::AttestationRefusal;

/// The media type of a problem (RFC 9457).
pub const MEDIA_TYPE: &str = "application/problem+json";
const URN: &str = "urn:assay:problem:";
/// A longer body is not read as a problem. In bytes.
const LONGEST: usize = 64 * 1024;

/// What a caller should do after a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Repeat at once, with the fresh nonce from the refusal.
    Now,
    /// Repeat later: after `Retry-After` if present, else with back-off.
    After,
    /// The server no longer knows this machine or certificate: enroll again.
    ReEnroll,
    /// Repeating the same call does not help.
    Never,
}

/// Whether a refused call showed a credential that the server knows: a machine's key, a token or an API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// It did, or the refusal does not tell.
    Known,
    /// It did not. Anyone can make such a call, so the server counts it against the caller's address.
    Unknown,
}

macro_rules! problems {
    ($($(#[$doc:meta])*
       $kind:ident = $slug:literal, $status:literal, $title:literal, $retry:ident, $credential:ident;)+) => {
        /// Every problem that the server can return.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ProblemKind { $($(#[$doc])* $kind,)+ }

        impl ProblemKind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind),+];

            /// The last part of the `type` URN.
            #[must_use]
            pub const fn slug(self) -> &'static str {
                match self { $(Self::$kind => $slug,)+ }
            }

            /// The HTTP status.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$kind => $status,)+ }
            }

            /// One line for people, the same for each problem of this kind.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$kind => $title,)+ }
            }

            /// What the caller should do.
            #[must_use]
            pub const fn retry(self) -> Retry {
                match self { $(Self::$kind => Retry::$retry,)+ }
            }

            /// Whether the refused call showed a known credential.
            #[must_use]
            pub const fn credential(self) -> Credential {
                match self { $(Self::$kind => Credential::$credential,)+ }
            }
        }
    };
}

// Slug, HTTP status, title, retry, credential.
problems! {
    /// Not JSON, or a field is missing, mistyped or (for administrators) unknown.
    Malformed = "malformed", 400, "The request is malformed", Never, Unknown;
    /// The CSR is unreadable, not P-256, or does not prove possession of its key.
    BadCsr = "bad-csr", 400, "The certificate signing request is not acceptable", Never, Unknown;
    /// The nonce is unknown, forged, expired or used.
    BadNonce = "bad-nonce", 400, "The nonce is invalid or expired", Now, Unknown;
    /// The evidence was not made by this machine for this call.
    BadEvidence = "bad-evidence", 401, "The evidence is invalid", Never, Unknown;
    /// The enrollment token is unknown, used up, expired, revoked or bound to other serial numbers.
    EnrollmentTokenInvalid =
        "enrollment-token-invalid", 401, "The enrollment token is not valid for this machine", Never, Unknown;
    /// The API key is missing or unknown.
    Unauthenticated = "unauthenticated", 401, "A valid API key is required", Never, Unknown;
    /// The API key's role does not allow this.
    Forbidden = "forbidden", 403, "The API key's role does not allow this", Never, Known;
    /// The machine waits for approval.
    MachinePending = "machine-pending", 403, "The machine waits for an administrator's approval", After, Known;
    /// The machine is quarantined.
    MachineQuarantined = "machine-quarantined", 403, "The machine is quarantined", After, Known;
    /// The machine is revoked for good.
    MachineRevoked = "machine-revoked", 403, "The machine is revoked", Never, Known;
    /// A newer key has replaced this one.
    KeySuperseded = "key-superseded", 403, "A newer key has replaced this one", Never, Known;
    /// Serial number, hardware UUID, key store or continuity differ from the record.
    IdentityMismatch = "identity-mismatch", 403, "The machine's identity differs from the record", After, Known;
    /// An administrator denied this key, or another next key took its place.
    EnrollmentDenied = "enrollment-denied", 403, "This key was denied", Never, Known;
    /// There is no machine with this id or key.
    MachineUnknown = "machine-unknown", 404, "The machine is unknown: it must enroll again", ReEnroll, Unknown;
    /// There is no such resource.
    NotFound = "not-found", 404, "No such resource", Never, Known;
    /// The resource does not support this method.
    MethodNotAllowed = "method-not-allowed", 405, "Method not allowed; see the Allow header", Never, Known;
    /// The endpoint does not accept the body's media type.
    UnsupportedMediaType = "unsupported-media-type", 415, "The body's media type is not supported", Never, Unknown;
    /// The certificate is past the grace period of renewal.
    RenewalExpired = "renewal-expired", 403, "The certificate is too old to renew: the machine must enroll again", ReEnroll, Known;
    /// The serial number is enrolled with another key.
    MachineExists = "machine-exists", 409, "This serial number is enrolled with another key", Never, Known;
    /// The attestation is not valid for this machine; `reason` says why.
    AttestationRefused = "attestation-refused", 409, "The attestation is not valid for this machine", Never, Known;
    /// The current state forbids it.
    Conflict = "conflict", 409, "The request conflicts with the current state", Never, Known;
    /// What the call is about has changed since the caller read it.
    PreconditionFailed = "precondition-failed", 412, "The resource has changed since it was read", Never, Known;
    /// The call must say which state it is about.
    PreconditionRequired = "precondition-required", 428, "The call needs an If-Match header", Never, Known;
    /// The body is too large.
    PayloadTooLarge = "payload-too-large", 413, "The body is too large", Never, Unknown;
    /// Too many requests.
    RateLimited = "rate-limited", 429, "Too many requests", After, Known;
    /// The server cannot do it now; repeating is safe.
    Unavailable = "unavailable", 503, "The server is temporarily unavailable", After, Known;
    /// Any other failure of the server.
    Internal = "internal", 500, "Internal server error", After, Known;
}

impl ProblemKind {
    /// The `type` member: `urn:assay:problem:SLUG`.
    #[must_use]
    pub fn urn(self) -> String {
        format!("{URN}{}", self.slug())
    }

    /// Finds a kind by its `type` member. `None` for a kind that this build does not know.
    #[must_use]
    pub fn from_urn(urn: &str) -> Option<Self> {
        let slug = urn.strip_prefix(URN)?;
        Self::ALL.iter().copied().find(|kind| kind.slug() == slug)
    }
}

/// A problem as it is on the wire (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// `urn:assay:problem:SLUG`
    #[serde(rename = "type")]
    pub kind_urn: String,
    /// One line, the same for each problem of this type.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong with this request.
    #[serde(default)]
    pub detail: String,
    /// The id of this request in the server's log.
    #[serde(default)]
    pub request_id: String,
    /// The first rows of an imported file that are wrong; absent in other problems.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<LineError>,
    /// Why an attestation is refused; absent in other problems.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<AttestationRefusal>,
}

/// What is wrong with one row of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LineError {
    /// The line in which the row begins, counted from 1.
    pub line: u64,
    /// What is wrong.
    pub detail: String,
}

impl Problem {
    /// Makes one of a known kind.
    #[must_use]
    pub fn new(kind: ProblemKind, detail: String, request_id: String) -> Self {
        Self {
            kind_urn: kind.urn(),
            title: kind.title().to_owned(),
            status: kind.status(),
            detail,
            request_id,
            errors: Vec::new(),
            reason: None,
        }
    }

    /// Reads an error response. `None` if it is not a problem of RFC 9457, such as a proxy's error page.
    ///
    /// `content_type` is the header's value; parameters such as a character set are ignored.
    #[must_use]
    pub fn parse(content_type: Option<&str>, body: &[u8]) -> Option<Self> {
        let media_type = content_type?.split(';').next()?.trim();
        if !media_type.eq_ignore_ascii_case(MEDIA_TYPE) || body.len() > LONGEST {
            return None;
        }
        serde_json::from_slice(body).ok()
    }

    /// Its kind; `None` for a kind of a newer server.
    #[must_use]
    pub fn kind(&self) -> Option<ProblemKind> {
        ProblemKind::from_urn(&self.kind_urn)
    }

    /// What the caller should do. For an unknown kind, its status decides.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self.kind() {
            Some(kind) => kind.retry(),
            None if self.status == 429 || self.status >= 500 => Retry::After,
            None => Retry::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire() {
        for &kind in ProblemKind::ALL {
            let sent = Problem::new(kind, "why".into(), "request-1".into());
            let body = serde_json::to_vec(&sent).unwrap();
            let read = Problem::parse(Some("application/problem+json; charset=utf-8"), &body).unwrap();
            assert_eq!((read.kind(), read.retry()), (Some(kind), kind.retry()));
            assert_eq!(read, sent);
        }
    }

    #[test]
    fn slugs_are_unique() {
        let mut slugs: Vec<_> = ProblemKind::ALL.iter().map(|kind| kind.slug()).collect();
        slugs.sort_unstable();
        slugs.dedup();
        assert_eq!(slugs.len(), ProblemKind::ALL.len());
    }

    #[test]
    fn a_proxys_error_page_is_not_a_problem() {
        assert_eq!(Problem::parse(Some("text/html"), b"<h1>502</h1>"), None);
        assert_eq!(Problem::parse(None, b"{}"), None);
        assert_eq!(Problem::parse(Some(MEDIA_TYPE), b"[]"), None);
        assert_eq!(Problem::parse(Some(MEDIA_TYPE), &vec![b' '; LONGEST + 1]), None);
    }

    #[test]
    fn the_status_decides_for_an_unknown_kind() {
        let problem = |status| Problem {
            kind_urn: "urn:assay:problem:of-a-newer-server".into(),
            title: String::new(),
            status,
            detail: String::new(),
            request_id: String::new(),
            errors: Vec::new(),
            reason: None,
        };
        assert_eq!(problem(503).retry(), Retry::After);
        assert_eq!(problem(429).retry(), Retry::After);
        assert_eq!(problem(403).retry(), Retry::Never);
    }
}
