//! What can happen, each as one method of a run.

mod administrators;
mod agents;
mod attestations;
mod decisions;
mod races;
mod rotations;
mod thieves;
