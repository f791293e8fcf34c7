//! The registry of problems: every way in which the server says no, and what the caller should do then.

use serde::{Deserialize, Serialize};

use crate::attestation::AttestationRefusal;

/// The media type of a problem (RFC 9457).
pub const MEDIA_TYPE: &str = "application/problem+json";
const URN: &str = "urn:assay:problem:";
/// The longest body that is read as a problem, in bytes.
const LONGEST: usize = 64 * 1024;

/// What a caller should do after a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Repeat at once, with the fresh nonce that came along.
    Now,
    /// Repeat later: after `Retry-After` if there is one, else with back-off.
    After,
    /// This machine, or its certificate, is not known any more: enroll again.
    ReEnroll,
    /// Repeating the same call cannot help; somebody has to change something.
    Never,
}

macro_rules! problems {
    ($($(#[$doc:meta])* $kind:ident = $slug:literal, $status:literal, $title:literal, $retry:ident;)+) => {
        /// Every problem that the server answers with.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ProblemKind { $($(#[$doc])* $kind,)+ }

        impl ProblemKind {
            /// All of them, in the order of the contract.
            pub const ALL: &[Self] = &[$(Self::$kind),+];

            /// The last part of the `type` URN.
            #[must_use]
            pub const fn slug(self) -> &'static str {
                match self { $(Self::$kind => $slug,)+ }
            }

            /// The HTTP status that goes with it.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$kind => $status,)+ }
            }

            /// One line for a person, the same each time.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$kind => $title,)+ }
            }

            /// What the caller should do.
            #[must_use]
            pub const fn retry(self) -> Retry {
                match self { $(Self::$kind => Retry::$retry,)+ }
            }
        }
    };
}

problems! {
    /// Not JSON, or a field is missing, mistyped or (for administrators) unknown.
    Malformed = "malformed", 400, "The request cannot be read", Never;
    /// The CSR is unreadable, not P-256, or does not prove possession of its key.
    BadCsr = "bad-csr", 400, "The certificate signing request is not acceptable", Never;
    /// The nonce is unknown, forged, expired or used.
    BadNonce = "bad-nonce", 400, "The nonce does not serve", Now;
    /// The evidence is not this machine's for this call.
    BadEvidence = "bad-evidence", 401, "The evidence does not verify", Never;
    /// The enrollment token does not let this machine in.
    EnrollmentTokenInvalid = "enrollment-token-invalid", 401, "The enrollment token does not serve", Never;
    /// No API key, or a bad one.
    Unauthenticated = "unauthenticated", 401, "An API key is required", Never;
    /// The API key's role does not allow this.
    Forbidden = "forbidden", 403, "The API key does not allow this", Never;
    /// The machine waits for approval.
    MachinePending = "machine-pending", 403, "The machine waits for an administrator's approval", After;
    /// The machine is held back.
    MachineQuarantined = "machine-quarantined", 403, "The machine is quarantined", After;
    /// The machine is out for good.
    MachineRevoked = "machine-revoked", 403, "The machine is revoked", Never;
    /// A newer key has replaced this one.
    KeySuperseded = "key-superseded", 403, "A newer key has replaced this one", Never;
    /// The serial number or hardware UUID is another than on record.
    IdentityMismatch = "identity-mismatch", 403, "The machine is not the one on record", After;
    /// An administrator denied this key.
    EnrollmentDenied = "enrollment-denied", 403, "An administrator denied this enrollment", Never;
    /// No machine with this id or key.
    MachineUnknown = "machine-unknown", 404, "No such machine: it must enroll again", ReEnroll;
    /// No such resource.
    NotFound = "not-found", 404, "No such resource", Never;
    /// The resource knows other methods.
    MethodNotAllowed = "method-not-allowed", 405, "The resource does not know this method", Never;
    /// The body is of another media type.
    UnsupportedMediaType = "unsupported-media-type", 415, "The body is of the wrong media type", Never;
    /// The certificate is past its renewal grace.
    RenewalExpired = "renewal-expired", 403, "The certificate expired too long ago: the machine must enroll again", ReEnroll;
    /// The serial number is enrolled with another key.
    MachineExists = "machine-exists", 409, "This serial number is enrolled with another key", Never;
    /// The attestation does not stand for this machine; `reason` says why.
    AttestationRefused = "attestation-refused", 409, "The attestation does not stand for this machine", Never;
    /// The present state forbids it.
    Conflict = "conflict", 409, "The present state forbids this", Never;
    /// The body is too large.
    PayloadTooLarge = "payload-too-large", 413, "The body is too large", Never;
    /// Too many requests.
    RateLimited = "rate-limited", 429, "Too many requests", After;
    /// The server cannot do it now; repeating is safe.
    Unavailable = "unavailable", 503, "The server cannot do this now", After;
    /// The rest.
    Internal = "internal", 500, "The server failed", After;
}

impl ProblemKind {
    /// The `type` member: `urn:assay:problem:SLUG`.
    #[must_use]
    pub fn urn(self) -> String {
        format!("{URN}{}", self.slug())
    }

    /// Finds a kind by its `type` member; `None` for one that this build does not know.
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
    /// What was wrong this time.
    #[serde(default)]
    pub detail: String,
    /// Names this request in the server's log.
    #[serde(default)]
    pub request_id: String,
    /// What was wrong with a file, row by row, as far as it is told; absent for everything else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<LineError>,
    /// Why an attestation is refused; absent for everything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<AttestationRefusal>,
}

/// What is wrong with one row of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LineError {
    /// The line where the row begins, from 1.
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

    /// Reads an error answer. `None` when it is no problem of RFC 9457: a proxy's error page, say.
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

    /// Which problem of the registry it is; `None` for one of a newer server.
    #[must_use]
    pub fn kind(&self) -> Option<ProblemKind> {
        ProblemKind::from_urn(&self.kind_urn)
    }

    /// What to do; for an unknown kind, what its status says.
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
    fn every_kind_is_found_again_by_what_is_on_the_wire() {
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
    fn a_proxys_error_page_is_no_problem() {
        assert_eq!(Problem::parse(Some("text/html"), b"<h1>502</h1>"), None);
        assert_eq!(Problem::parse(None, b"{}"), None);
        assert_eq!(Problem::parse(Some(MEDIA_TYPE), b"[]"), None);
        assert_eq!(Problem::parse(Some(MEDIA_TYPE), &vec![b' '; LONGEST + 1]), None);
    }

    #[test]
    fn an_unknown_problem_is_judged_by_its_status() {
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
