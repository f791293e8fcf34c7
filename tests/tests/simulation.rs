//! The simulation with seeds that stay the same. `cargo run --bin simulation` makes more runs.

use assay_tests::simulation::Simulation;

#[test]
fn no_rule_is_broken_by_random_operations_on_two_replicas() {
    let simulation = Simulation {
        first_seed: 1,
        runs: 40,
        steps: 40,
        workers: 2,
    };
    if let Some(failure) = simulation.find_failure() {
        panic!("{failure}");
    }
}

#[test]
fn a_seed_makes_the_same_run_again() {
    for seed in [1, 2] {
        let [first, second] = Simulation::traces_of_repeated_run(seed, 40);
        assert!(first.lines().count() > 40, "{first}");
        assert_eq!(first, second, "seed {seed}");
    }
}
