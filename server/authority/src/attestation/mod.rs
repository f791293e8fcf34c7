//! What others than the machine itself attest of it. Pure: bytes and a time in, verified claims out.

pub mod apple;
