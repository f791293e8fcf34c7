//! Machines of a fleet that follows from a seed: it can be made again, by the load generator and in a database.

use assay_protocol::machine::MachineIdentity;
use aws_lc_rs::digest;
use uuid::Uuid;

use super::Machine;
use super::key::Key;

/// The time in the id of the first machine that is put on record: 2026-01-01, in milliseconds.
pub const FIRST_ID: u64 = 1_767_225_600_000;

impl Machine {
    /// The machine with this number in the fleet of this seed.
    #[must_use]
    pub fn of_fleet(seed: &str, number: u64) -> Self {
        let seed = derive(&[seed.as_bytes(), &number.to_be_bytes()]);
        let identity = MachineIdentity {
            hardware_uuid: Some(format!("{:X}", Uuid::from_slice(&seed[16..]).unwrap())),
            model_identifier: Some("Mac16,1".to_owned()),
            hostname: Some(format!("mac-{number}.example.com")),
            serial_number: Some(format!("L{}", hex::encode_upper(&seed[..7]))),
        };
        Self::with_key(Key::from_number(derive(&[b"key", &seed])), identity)
    }
}

/// The id of that machine in a fleet that was put on record: a UUIDv7 whose time counts the machines. The other bits
/// are the same in the whole fleet, so that one id tells all others.
#[must_use]
pub fn id_on_record(seed: &str, number: u64) -> Uuid {
    let mut bytes = derive(&[b"id", seed.as_bytes()]);
    bytes[..6].copy_from_slice(&(FIRST_ID + number).to_be_bytes()[2..]);
    let mut id = uuid::Builder::from_slice(&bytes[..16]).unwrap();
    id.set_version(uuid::Version::SortRand)
        .set_variant(uuid::Variant::RFC4122);
    id.into_uuid()
}

fn derive(parts: &[&[u8]]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, &parts.concat());
    digest.as_ref().try_into().unwrap()
}
