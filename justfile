# A menu; the logic lives in scripts/ and xtask.

# what exists
default:
    @just --list

# read-only checks: format, lints, sizes and edges
verify:
    scripts/test lint

# format and apply simple fixes
fix:
    cargo fmt --all
    cargo clippy --workspace --all-targets --fix --allow-dirty

# everything the README's second command runs
test:
    scripts/test

# seeded cluster simulation, more seeds: just sim 5000
sim seeds="1000":
    FUSEFS_SIM_SEEDS={{seeds}} cargo test -p fusefs-chaos-tests --test sim -- --nocapture

# a mounted fusefs with embedded defaults
dev mountpoint="/tmp/fusefs":
    scripts/dev {{mountpoint}}

# benchmark a directory against a local one
bench dir:
    cargo run --release -p fusefs-cli -- bench {{dir}}
