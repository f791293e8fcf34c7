//! Inventories: JSON if the input begins with `{`, and CSV otherwise.

#![no_main]

use assay_protocol::{
    admin_api::inventory::{ImportInventory, ImportItem},
    text::hardware_id,
};
use assay_server::fuzzing::inventory;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let is_csv = !file.starts_with(b"{");
    let Ok(items) = inventory(file, is_csv) else { return };
    for pair in items.windows(2) {
        assert!(
            pair[0].serial_number < pair[1].serial_number,
            "sorted, without repetition"
        );
    }
    for item in &items {
        assert_eq!(hardware_id(&item.serial_number), Ok(Some(item.serial_number.as_str())));
        assert!(item.labels.len() <= 64);
        assert!(
            item.owner
                .as_ref()
                .is_none_or(|owner| !owner.is_empty() && owner.trim() == owner)
        );
    }
    // The other reader accepts the same rows.
    let written = ImportInventory { items: items.clone() };
    let written = serde_json::to_vec(&written).unwrap();
    same(&inventory(&written, false).unwrap(), &items);
    if let Some(csv) = csv(&items) {
        same(&inventory(csv.as_bytes(), true).unwrap(), &items);
    }
});

/// `None` if a label cannot be written as `key=value;key=value`.
fn csv(items: &[ImportItem]) -> Option<String> {
    let mut csv = "serial_number,labels,owner\n".to_owned();
    for item in items {
        let labels: Vec<_> = item
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let is_unfit = |value: &String| value.contains(';') || value.trim() != value;
        if item.labels.values().any(is_unfit) {
            return None;
        }
        let fields = [
            item.serial_number.as_str(),
            &labels.join(";"),
            item.owner.as_deref().unwrap_or_default(),
        ];
        let quoted: Vec<_> = fields
            .iter()
            .map(|field| format!("\"{}\"", field.replace('"', "\"\"")))
            .collect();
        csv += &quoted.join(",");
        csv.push('\n');
    }
    Some(csv)
}

fn same(one: &[ImportItem], other: &[ImportItem]) {
    let fields = |items: &[ImportItem]| serde_json::to_value(items).unwrap();
    assert_eq!(fields(one), fields(other));
}
