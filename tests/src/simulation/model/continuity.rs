//! Which continuity values evidence may carry.

use std::collections::BTreeSet;

type Value = Option<String>;

/// The values that the next evidence may carry, and those that it surely may. They differ after a call whose answer and fate
/// are unknown.
#[derive(Clone, Debug)]
pub(in crate::simulation) struct Continuity {
    /// `None` for any value at all.
    may: Option<BTreeSet<Value>>,
    surely: BTreeSet<Value>,
}

impl Continuity {
    /// Whatever comes next is accepted.
    pub(in crate::simulation) fn open() -> Self {
        Self {
            may: None,
            surely: BTreeSet::new(),
        }
    }

    /// After evidence that carried this value was accepted, and answered with that one.
    ///
    /// An answer without a value leaves the machine with the one that it has.
    pub(in crate::simulation) fn after(carried: Value, issued: Value) -> Self {
        let mut values = BTreeSet::from([carried]);
        if issued.is_some() {
            values.insert(issued);
        }
        Self {
            may: Some(values.clone()),
            surely: values,
        }
    }

    /// After evidence was sent whose fate is unknown.
    pub(in crate::simulation) fn after_unknown(&mut self, carried: &Value) {
        let was_sure = self.is_open() || self.surely.contains(carried);
        if let Some(may) = &mut self.may {
            may.insert(carried.clone());
        }
        self.surely.retain(|value| value == carried);
        if was_sure {
            self.surely.insert(carried.clone());
        }
    }

    pub(in crate::simulation) fn may_carry(&self, value: &Value) -> bool {
        self.may.as_ref().is_none_or(|may| may.contains(value))
    }

    pub(in crate::simulation) fn surely_may_carry(&self, value: &Value) -> bool {
        self.is_open() || self.surely.contains(value)
    }

    /// Whether the machine has certainly sent a value, and must send one from now on.
    pub(in crate::simulation) fn is_bound(&self) -> bool {
        self.may.as_ref().is_some_and(|may| !may.contains(&None))
    }

    fn is_open(&self) -> bool {
        self.may.is_none()
    }
}
