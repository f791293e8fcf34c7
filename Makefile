# Two commands for a fresh machine with Rust. Each installs what is missing, says so, and then runs plain cargo, which also
# works by itself. They use the development profile, because it builds in a fraction of the time of a release.

.PHONY: demo test

# Starts a server and some machines, and prints what each is granted. `make demo ARGS=--once` exits after every machine has
# checked in.
demo:
	@deploy/prerequisites postgres compiler
	cargo run --bin assay-server -- demo $(ARGS)

# The whole test suite: `make test ARGS=enrollment` runs the tests with that in their names.
test:
	@deploy/prerequisites postgres compiler openssl python relying-parties
	cargo test --workspace $(ARGS)
