//! Keeps this process's memory to itself. The keys of the certificate authority and the master key are in it.

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

/// A crash leaves no core file, and other processes of this account can neither trace this one nor read its memory.
pub(crate) fn protect() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    }
    Ok(())
}
