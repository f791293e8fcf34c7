//! Machines that are derived from a seed. The load generator and a database can thus contain the same fleet.

use assay_protocol::machine::MachineIdentity;
use aws_lc_rs::digest;
use uuid::Uuid;

use super::Machine;
use super::key::Key;

/// The time in the id of the first inserted machine: 2026-01-01, in milliseconds.
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

/// The id of this machine in an inserted fleet: a UUIDv7 whose time counts the machines. The other bits are the same for
/// the whole fleet, so all ids follow from one.
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
