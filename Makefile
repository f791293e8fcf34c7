# Two commands for a fresh machine with Rust. Each installs what is missing, says so, and then is plain cargo, which
# works by itself, too. The development profile is meant: it builds in a fraction of the time of a release.

.PHONY: demo test

# A server, some machines and what they are granted: `make demo ARGS=--once` ends after every machine has checked in.
demo:
	@deploy/prerequisites postgres compiler
	cargo run --bin assay-server -- demo $(ARGS)

# The whole test suite: `make test ARGS=enrollment` runs the tests with that in their names.
test:
	@deploy/prerequisites postgres compiler openssl python nginx
	cargo test --workspace $(ARGS)
