//! The Online Certificate Status Protocol (RFC 6960): parses requests, and signs responses with a delegated responder.

pub(crate) mod certificate;
mod issuer;
mod messages;
mod request;
mod responder;

pub use certificate::issue_for_root;
pub use issuer::OcspIssuer;
pub use request::{CertificateQuestion, OcspRequest, UnreadableRequest};
pub use responder::{BACKDATING, CertificateStatus, OcspError, OcspResponder, RESPONSE_LIFE, StatusAnswer};

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use assay_protocol::admin_api::certificates::RevocationReason;
    use aws_lc_rs::digest::{self, Algorithm, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA384, SHA512};
    use der::{
        Decode, Encode,
        asn1::{Int, ObjectIdentifier, OctetString},
    };
    use proptest::prelude::*;
    use rstest::rstest;
    use time::{Duration, OffsetDateTime, macros::datetime};
    use x509_cert::{ext::Extension, spki::AlgorithmIdentifierOwned};

    use super::{
        messages::{
            BasicResponse, CertificateId, OcspRequestMessage, OcspResponseMessage, Request, StatusMessage, TbsRequest,
        },
        *,
    };
    use crate::{Installation, IssuingAuthority, IssuingParts, certificate_path, issuing};

    const NOW: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);
    const SERIAL_NUMBER: [u8; 16] = [0x41; 16];
    const NONCE: &str = "1.3.6.1.5.5.7.48.1.2";
    const SHA1_OID: &str = "1.3.14.3.2.26";
    const SHA256_OID: &str = "2.16.840.1.101.3.4.2.1";

    static CA: LazyLock<IssuingAuthority> = LazyLock::new(|| {
        let root = issuing::generate_root("example.com", NOW).unwrap();
        let issuing = issuing::generate_issuing(&root, &Installation::example(), NOW).unwrap();
        let parts = IssuingParts {
            id: uuid::Uuid::from_u128(7),
            ca: issuing,
            intermediates: Vec::new(),
        };
        IssuingAuthority::new(&parts, &root.certificate, &Installation::example()).unwrap()
    });

    fn question(algorithm: &'static Algorithm, oid: &str) -> Request {
        let certificate = certificate_path::read(CA.certificate_der()).unwrap();
        let hash = |bytes: &[u8]| OctetString::new(digest::digest(algorithm, bytes).as_ref()).unwrap();
        Request {
            certificate: CertificateId {
                hash_algorithm: AlgorithmIdentifierOwned {
                    oid: oid.parse().unwrap(),
                    parameters: None,
                },
                issuer_name_hash: hash(certificate.subject().as_raw()),
                issuer_key_hash: hash(&certificate.public_key().subject_public_key.data),
                serial_number: Int::new(&SERIAL_NUMBER).unwrap(),
            },
            extensions: None,
        }
    }

    fn message(requests: Vec<Request>, extensions: Option<Vec<Extension>>) -> Vec<u8> {
        let to_be_signed = TbsRequest {
            version: 0,
            requestor_name: None,
            requests,
            extensions,
        };
        OcspRequestMessage {
            to_be_signed,
            signature: None,
        }
        .to_der()
        .unwrap()
    }

    fn extension(oid: &str, critical: bool, value: &[u8]) -> Extension {
        Extension {
            extn_id: ObjectIdentifier::new_unwrap(oid),
            critical,
            extn_value: OctetString::new(value).unwrap(),
        }
    }

    fn nonce(length: usize) -> Extension {
        let nonce = OctetString::new(vec![7; length]).unwrap().to_der().unwrap();
        extension(NONCE, false, &nonce)
    }

    fn asked(extensions: Option<Vec<Extension>>) -> Vec<u8> {
        message(vec![question(&SHA1_FOR_LEGACY_USE_ONLY, SHA1_OID)], extensions)
    }

    #[rstest]
    #[case(&SHA1_FOR_LEGACY_USE_ONLY, SHA1_OID, true)]
    #[case(&SHA256, SHA256_OID, true)]
    #[case(&SHA384, "2.16.840.1.101.3.4.2.2", true)]
    #[case(&SHA512, "2.16.840.1.101.3.4.2.3", true)]
    // SHA-224, and no digest at all.
    #[case(&SHA256, "2.16.840.1.101.3.4.2.4", false)]
    #[case(&SHA256, "1.2.840.10045.4.3.2", false)]
    // A digest labelled with the other algorithm.
    #[case(&SHA256, SHA1_OID, false)]
    fn a_ca_is_known_by_each_digest(#[case] algorithm: &'static Algorithm, #[case] oid: &str, #[case] known: bool) {
        let request = OcspRequest::parse(&message(vec![question(algorithm, oid)], None)).unwrap();
        let question = &request.questions()[0];
        assert_eq!(CA.ocsp_issuer().is_in(question), known);
        assert_eq!(question.serial_number(), hex::encode(SERIAL_NUMBER));
        let mut other = self::question(algorithm, oid);
        other.certificate.issuer_key_hash = OctetString::new([0; 20]).unwrap();
        let request = OcspRequest::parse(&message(vec![other], None)).unwrap();
        assert!(
            !CA.ocsp_issuer().is_in(&request.questions()[0]),
            "the name alone is not enough"
        );
    }

    #[rstest]
    #[case::shortest(1, true)]
    #[case::longest(128, true)]
    #[case::empty(0, false)]
    #[case::too_long(129, false)]
    fn a_nonce_has_from_1_to_128_bytes(#[case] length: usize, #[case] readable: bool) {
        let parsed = OcspRequest::parse(&asked(Some(vec![nonce(length)])));
        assert_eq!(
            parsed.map(|request| request.has_nonce()),
            if readable { Ok(true) } else { Err(UnreadableRequest) }
        );
    }

    #[test]
    fn unsupported_critical_extensions_and_bad_nonces_are_refused() {
        let unknown = |critical| Some(vec![extension("1.3.6.1.5.5.7.48.1.4", critical, &[5, 0])]);
        assert!(OcspRequest::parse(&asked(unknown(false))).is_ok());
        assert!(OcspRequest::parse(&asked(unknown(true))).is_err());
        let many = |number: usize| {
            let questions = (0..number).map(|_| question(&SHA256, SHA256_OID)).collect();
            OcspRequest::parse(&message(questions, None)).map(|request| request.questions().len())
        };
        assert_eq!([many(1), many(20)], [Ok(1), Ok(20)]);
        assert_eq!([many(0), many(21)], [Err(UnreadableRequest); 2]);
        let mut long = question(&SHA256, SHA256_OID);
        long.certificate.serial_number = Int::new(&[0x41; 22]).unwrap();
        assert!(OcspRequest::parse(&message(vec![long], None)).is_err());
        let mut trailing = asked(None);
        trailing.push(0);
        assert!(OcspRequest::parse(&trailing).is_err());
    }

    #[test]
    fn a_response_has_the_status_of_each_certificate_and_returns_the_nonce() {
        let requests = (0..3).map(|_| question(&SHA256, SHA256_OID)).collect();
        let request = OcspRequest::parse(&message(requests, Some(vec![nonce(32)]))).unwrap();
        let (at, reason) = (NOW - Duration::hours(1), RevocationReason::KeyCompromise);
        let statuses = [
            CertificateStatus::Good,
            CertificateStatus::Revoked { at, reason },
            CertificateStatus::Unknown,
        ];
        let answers = request.questions().iter().zip(statuses);
        let answers: Vec<_> = answers
            .map(|(question, status)| StatusAnswer { question, status })
            .collect();
        let der = CA
            .issue_ocsp_responder(NOW)
            .unwrap()
            .respond(&request, &answers, NOW)
            .unwrap();
        let response = OcspResponseMessage::from_der(&der).unwrap().response.unwrap();
        let basic = BasicResponse::from_der(response.response.as_bytes()).unwrap();
        let told: Vec<_> = basic
            .to_be_signed
            .responses
            .iter()
            .map(|response| &response.status)
            .collect();
        assert!(
            matches!(
                told[..],
                [
                    StatusMessage::Good(_),
                    StatusMessage::Revoked(_),
                    StatusMessage::Unknown(_)
                ]
            ),
            "{told:?}"
        );
        assert_eq!(basic.to_be_signed.extensions, Some(vec![nonce(32)]));
    }

    #[test]
    fn a_responder_is_usable_for_its_ca_for_two_thirds_of_its_lifetime() {
        let responder = CA.issue_ocsp_responder(NOW).unwrap();
        let usable = |after: Duration| responder.is_usable(CA.key_identifier(), NOW + after);
        assert!(usable(Duration::ZERO) && usable(Duration::days(4)));
        assert!(!usable(Duration::days(5)) && !usable(-Duration::days(2)));
        assert!(!responder.is_usable(b"another", NOW));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _parsed = OcspRequest::parse(&bytes);
        }

        #[test]
        fn a_damaged_request_is_parsed_or_refused(place in any::<prop::sample::Index>(), byte in any::<u8>(), length in any::<prop::sample::Index>()) {
            let mut bytes = asked(Some(vec![nonce(32)]));
            let place = place.index(bytes.len());
            bytes[place] = byte;
            let _damaged = OcspRequest::parse(&bytes);
            bytes.truncate(length.index(bytes.len()));
            prop_assert!(OcspRequest::parse(&bytes).is_err());
        }
    }
}
