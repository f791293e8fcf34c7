//! A device's message, as its MDM passes it on: a property list in XML. Any managed device can send any bytes. The
//! parser therefore reads a stream of events: depth and length cost no memory, and only the wanted fields are kept.

use plist::stream::{OwnedEvent, XmlReader};

/// No certificate chain is longer. A longer list is rejected.
const MAX_CERTIFICATES: usize = 16;

/// The fields of a device's message that the server uses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) udid: Option<String>,
    pub(crate) enrollment_id: Option<String>,
    /// As the device reports it.
    pub(crate) serial_number: Option<String>,
    /// `DevicePropertiesAttestation`: certificates in DER, leaf first.
    pub(crate) attestation: Option<Vec<Vec<u8>>>,
}

/// Why a message cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportError {
    #[error("it is not a property list in XML, or it is truncated")]
    Syntax,
    #[error("it continues after its end")]
    End,
    #[error("it is not a dictionary")]
    NotADictionary,
    #[error("{0} is not a string")]
    NotAText(&'static str),
    #[error("QueryResponses is not a dictionary")]
    QueryResponses,
    #[error("DevicePropertiesAttestation is not an array of data")]
    Attestation,
    #[error("{0} appears twice")]
    Repeated(&'static str),
}

/// A stream of a property list's events.
struct Events<'a>(XmlReader<&'a [u8]>);

impl Report {
    /// Reads what a device sent.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, ReportError> {
        let mut events = Events(XmlReader::new(bytes));
        if !matches!(events.next()?, OwnedEvent::StartDictionary(_)) {
            return Err(ReportError::NotADictionary);
        }
        let mut report = Self::default();
        while let Some(key) = events.key()? {
            match key.as_str() {
                "UDID" => events.text_into(&mut report.udid, "UDID")?,
                "EnrollmentID" => events.text_into(&mut report.enrollment_id, "EnrollmentID")?,
                "SerialNumber" => events.text_into(&mut report.serial_number, "SerialNumber")?,
                "QueryResponses" => report.read_query_responses(&mut events)?,
                _ => events.skip()?,
            }
        }
        match events.0.next() {
            None => Ok(report),
            Some(_) => Err(ReportError::End),
        }
    }

    fn read_query_responses(&mut self, events: &mut Events<'_>) -> Result<(), ReportError> {
        if !matches!(events.next()?, OwnedEvent::StartDictionary(_)) {
            return Err(ReportError::QueryResponses);
        }
        while let Some(key) = events.key()? {
            match key.as_str() {
                "SerialNumber" => events.text_into(&mut self.serial_number, "SerialNumber")?,
                "DevicePropertiesAttestation" if self.attestation.is_some() => {
                    return Err(ReportError::Repeated("DevicePropertiesAttestation"));
                }
                "DevicePropertiesAttestation" => self.attestation = Some(events.chain()?),
                _ => events.skip()?,
            }
        }
        Ok(())
    }
}

impl Events<'_> {
    fn next(&mut self) -> Result<OwnedEvent, ReportError> {
        self.0.next().and_then(Result::ok).ok_or(ReportError::Syntax)
    }

    /// The next key of a dictionary; `None` at its end.
    fn key(&mut self) -> Result<Option<String>, ReportError> {
        match self.next()? {
            OwnedEvent::String(key) => Ok(Some(key.into_owned())),
            OwnedEvent::EndCollection => Ok(None),
            _ => Err(ReportError::NotADictionary),
        }
    }

    fn text_into(&mut self, place: &mut Option<String>, name: &'static str) -> Result<(), ReportError> {
        let OwnedEvent::String(text) = self.next()? else {
            return Err(ReportError::NotAText(name));
        };
        match place.replace(text.into_owned()) {
            None => Ok(()),
            Some(_) => Err(ReportError::Repeated(name)),
        }
    }

    fn chain(&mut self) -> Result<Vec<Vec<u8>>, ReportError> {
        if !matches!(self.next()?, OwnedEvent::StartArray(_)) {
            return Err(ReportError::Attestation);
        }
        let mut chain = Vec::new();
        loop {
            match self.next()? {
                OwnedEvent::Data(der) if chain.len() < MAX_CERTIFICATES => chain.push(der.into_owned()),
                OwnedEvent::EndCollection => return Ok(chain),
                _ => return Err(ReportError::Attestation),
            }
        }
    }

    /// Skips a value and everything in it.
    fn skip(&mut self) -> Result<(), ReportError> {
        let mut depth = 0_u64;
        loop {
            match self.next()? {
                OwnedEvent::StartArray(_) | OwnedEvent::StartDictionary(_) => depth = depth.saturating_add(1),
                OwnedEvent::EndCollection => {
                    depth = depth.checked_sub(1).ok_or(ReportError::NotADictionary)?;
                }
                _ => {}
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::Index};
    use rstest::rstest;

    use super::*;

    fn in_plist(content: &str) -> String {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \
             \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n<plist version=\"1.0\">\n{content}\n</plist>\n"
        )
    }

    /// A Mac's response.
    fn response() -> String {
        in_plist(
            "<dict><key>CommandUUID</key><string>0001</string>\n<key>QueryResponses</key><dict>
               <key>DevicePropertiesAttestation</key><array><data>\n\tAQI\n\tD\n</data><data>BA==</data></array>
               <key>SerialNumber</key><string>C02&amp;&#88;</string>
               <key>ServiceSubscriptions</key><array><dict><key>SerialNumber</key><string>other</string></dict></array>
             </dict><key>Status</key><string>Acknowledged</string><key>UDID</key><string>66ADE930</string></dict>",
        )
    }

    #[test]
    fn finds_the_chain_and_the_reported_owner() {
        assert_eq!(
            Report::read(response().as_bytes()).unwrap(),
            Report {
                udid: Some("66ADE930".to_owned()),
                enrollment_id: None,
                serial_number: Some("C02&X".to_owned()),
                attestation: Some(vec![vec![1, 2, 3], vec![4]]),
            }
        );
    }

    #[rstest]
    #[case("", "it is not a property list in XML, or it is truncated")]
    #[case("bplist00", "it is not a property list in XML, or it is truncated")]
    #[case("<plist><array/></plist>", "it is not a dictionary")]
    #[case(
        "<plist><dict><key>UDID</key>",
        "it is not a property list in XML, or it is truncated"
    )]
    #[case("<plist><dict><key>UDID</key></dict></plist>", "UDID is not a string")]
    #[case("<plist><dict><key>x</key></dict></plist>", "it is not a dictionary")]
    #[case("<plist><dict><integer>1</integer></dict></plist>", "it is not a dictionary")]
    #[case("<plist><dict/><dict/></plist>", "it continues after its end")]
    #[case(
        "<plist><dict><key>UDID</key><string>a</string><key>UDID</key><string>b</string></dict></plist>",
        "UDID appears twice"
    )]
    #[case(
        "<plist><dict><key>QueryResponses</key><array/></dict></plist>",
        "QueryResponses is not a dictionary"
    )]
    #[case(
        "<plist><dict><key>QueryResponses</key><dict><key>DevicePropertiesAttestation</key><data>AA==</data></dict></dict></plist>",
        "DevicePropertiesAttestation is not an array of data"
    )]
    fn says_what_is_wrong(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(Report::read(text.as_bytes()).unwrap_err().to_string(), expected);
    }

    /// A recursive parser would overflow the stack here, and end the server.
    #[test]
    fn depth_costs_nothing() {
        let deep = 200_000;
        for name in ["Other", "QueryResponses"] {
            let (open, close) = ("<dict><key>a</key>".repeat(deep), "</dict>".repeat(deep));
            let text = format!("<plist><dict><key>{name}</key>{open}<true/>{close}</dict></plist>");
            assert_eq!(Report::read(text.as_bytes()).unwrap(), Report::default());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_find_a_chain_that_is_not_there(bytes in vec(any::<u8>(), 0..512)) {
            if let Ok(report) = Report::read(&bytes) {
                prop_assert_eq!(report.attestation, None);
            }
        }

        #[test]
        fn a_changed_response_is_read_or_refused(
            changes in vec((any::<Index>(), any::<Index>(), vec(any::<u8>(), 0..8)), 1..6),
        ) {
            let mut bytes = response().into_bytes();
            for (from, to, new) in changes {
                let (from, to) = (from.index(bytes.len() + 1), to.index(bytes.len() + 1));
                drop(bytes.splice(from.min(to)..from.max(to).min(from.min(to) + 16), new));
            }
            if let Ok(report) = Report::read(&bytes) {
                prop_assert!(report.attestation.unwrap_or_default().len() <= MAX_CERTIFICATES);
            }
        }
    }
}
