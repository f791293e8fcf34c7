//! The client certificate in the header of a proxy that ended TLS. The proxy must overwrite the header.

use std::borrow::Cow;

use assay_protocol::sha256;
use base64::{Engine, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode_str;

/// The longest accepted header in bytes. A certificate of a machine takes about 1.5 KiB.
const LONGEST: usize = 16 * 1024;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The form in which a proxy passes the client certificate on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum CertificateForm {
    /// PEM in percent-encoding: nginx's `$ssl_client_escaped_cert`.
    EscapedPem,
    /// DER in base64: HAProxy's `ssl_c_der,base64`.
    Base64Der,
    /// Envoy's `x-forwarded-client-cert` with one element, whose `Hash` is read.
    Xfcc,
}

/// The header is not in the configured form.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the header with the client certificate is not one certificate in the configured form")]
pub(crate) struct BadCertificateHeader;

impl CertificateForm {
    /// SHA-256 of the certificate. `None` for an empty header: the proxy got no certificate.
    pub(crate) fn thumbprint(self, header: &str) -> Result<Option<[u8; 32]>, BadCertificateHeader> {
        if header.is_empty() {
            return Ok(None);
        }
        if header.len() > LONGEST {
            return Err(BadCertificateHeader);
        }
        match self {
            Self::EscapedPem => Ok(Some(sha256(&der_of_pem(&unescape(header)?)?))),
            Self::Base64Der => Ok(Some(sha256(&decode(header)?))),
            Self::Xfcc => hash_of_xfcc(header).map(Some),
        }
    }
}

fn unescape(text: &str) -> Result<Cow<'_, str>, BadCertificateHeader> {
    percent_decode_str(text).decode_utf8().map_err(|_| BadCertificateHeader)
}

/// The one certificate in a PEM text.
fn der_of_pem(pem: &str) -> Result<Vec<u8>, BadCertificateHeader> {
    let body = pem.trim().strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END));
    let body: String = body.ok_or(BadCertificateHeader)?.split_ascii_whitespace().collect();
    decode(&body)
}

/// Certificates are sequences, so they begin with 0x30.
fn decode(base64: &str) -> Result<Vec<u8>, BadCertificateHeader> {
    let der = STANDARD.decode(base64).map_err(|_| BadCertificateHeader)?;
    match der.first() {
        Some(0x30) => Ok(der),
        _ => Err(BadCertificateHeader),
    }
}

/// The `Hash` of the only element. A second element would come from another proxy, or from a client whose header was
/// not overwritten.
fn hash_of_xfcc(header: &str) -> Result<[u8; 32], BadCertificateHeader> {
    let mut hash = None;
    for pair in pairs_of_xfcc(header)? {
        let (name, value) = pair.split_once('=').ok_or(BadCertificateHeader)?;
        if !name.eq_ignore_ascii_case("hash") {
            continue;
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(value, &mut bytes).map_err(|_| BadCertificateHeader)?;
        if hash.replace(bytes).is_some() {
            return Err(BadCertificateHeader);
        }
    }
    hash.ok_or(BadCertificateHeader)
}

/// Splits at semicolons outside quotes, and refuses commas there.
fn pairs_of_xfcc(header: &str) -> Result<Vec<&str>, BadCertificateHeader> {
    let (mut pairs, mut start) = (Vec::new(), 0);
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, byte) in header.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b',' if !is_quoted => return Err(BadCertificateHeader),
            b';' if !is_quoted => {
                pairs.extend(header.get(start..at));
                start = at + 1;
            }
            _ => {}
        }
    }
    if is_quoted {
        return Err(BadCertificateHeader);
    }
    pairs.extend(header.get(start..));
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use rstest::rstest;

    use super::*;

    const DER: [u8; 5] = [0x30, 3, 1, 2, 3];

    fn pem() -> String {
        format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(DER))
    }

    #[test]
    fn each_form_has_the_certificates_hash() {
        let escaped = utf8_percent_encode(&pem(), NON_ALPHANUMERIC).to_string();
        let hash = hex::encode(sha256(&DER));
        for (form, header) in [
            (CertificateForm::EscapedPem, escaped),
            (CertificateForm::Base64Der, STANDARD.encode(DER)),
            (CertificateForm::Xfcc, format!("Hash={hash}")),
            (
                CertificateForm::Xfcc,
                format!(r#"By=spiffe://a;hash={hash};Subject="CN=a, \"b;Hash=c\"";URI="#),
            ),
        ] {
            assert_eq!(form.thumbprint(&header), Ok(Some(sha256(&DER))), "{header}");
        }
        for form in [
            CertificateForm::EscapedPem,
            CertificateForm::Base64Der,
            CertificateForm::Xfcc,
        ] {
            assert_eq!(form.thumbprint(""), Ok(None));
        }
    }

    #[rstest]
    #[case::two_certificates(CertificateForm::EscapedPem, format!("{}{}", pem(), pem()))]
    #[case::no_pem(CertificateForm::EscapedPem, STANDARD.encode(DER))]
    #[case::invalid_utf_8(CertificateForm::EscapedPem, "%ff".to_owned())]
    #[case::no_certificate(CertificateForm::EscapedPem, format!("{BEGIN}\nAAAA\n{END}"))]
    #[case::pem(CertificateForm::Base64Der, pem())]
    #[case::too_long(CertificateForm::Base64Der, "MAAA".repeat(5000))]
    #[case::no_hash(CertificateForm::Xfcc, "By=spiffe://a".to_owned())]
    #[case::no_pair(CertificateForm::Xfcc, "a".to_owned())]
    #[case::two_elements(CertificateForm::Xfcc, format!("Hash={0},Hash={0}", "ab".repeat(32)))]
    #[case::two_hashes(CertificateForm::Xfcc, format!("Hash={0};Hash={0}", "ab".repeat(32)))]
    #[case::short_hash(CertificateForm::Xfcc, "Hash=abcd".to_owned())]
    #[case::open_quote(CertificateForm::Xfcc, format!("Hash={};Subject=\"a", "ab".repeat(32)))]
    fn other_headers_are_refused(#[case] form: CertificateForm, #[case] header: String) {
        assert_eq!(form.thumbprint(&header), Err(BadCertificateHeader));
    }
}
