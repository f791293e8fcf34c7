//! What a machine, an administrator and an operator go through, with real processes.

mod agent;
mod approval;
mod audit;
mod audit_roles;
mod certificates;
mod commands;
mod contended_records;
mod daemon;
mod enrollment;
mod events;
mod founding;
mod grants;
mod held_rows;
mod introspection;
mod inventory;
mod liveness;
mod lost_answers;
mod nonces;
mod outages;
mod reenrollment;
pub(crate) mod revocation;
mod rotation;
mod standing;
mod telemetry;
mod tls;
mod upgrade;
mod webhooks;
