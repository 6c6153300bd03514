//! Named steps of the calls, and the way for tests to die at each of them.
//!
//! With `FUSEFS_CSI_KILL_FILE=PATH` a debug build SIGKILLs itself when it reaches the step that the file names. The file is
//! removed first, so each arming is one death. Release builds have none of this.

/// Every step. Tests iterate over it, so a step that nobody reaches is found.
pub const STEPS: &[&str] = &[
    "controller.create.entered",
    "controller.create.made",
    "controller.delete.entered",
    "controller.delete.deleted",
    "controller.expand.entered",
    "controller.expand.expanded",
    "controller.publish.entered",
    "controller.publish.published",
    "controller.unpublish.entered",
    "controller.unpublish.unpublished",
    "node.stage.entered",
    "node.stage.recorded",
    "node.stage.mounted",
    "node.stage.promised",
    "node.mount.ready",
    "node.mount.started",
    "node.mount.made",
    "node.unstage.entered",
    "node.unstage.recorded",
    "node.unstage.started",
    "node.unstage.unmounted",
    "node.unstage.unprotected",
    "node.unstage.forgotten",
    "node.publish.entered",
    "node.publish.recorded",
    "node.publish.promised",
    "node.bind.ready",
    "node.bind.bound",
    "node.bind.flagged",
    "node.unpublish.entered",
    "node.unpublish.recorded",
    "node.unpublish.detached",
    "node.unpublish.removed",
    "node.unpublish.forgotten",
    "node.repair.entered",
    "node.repair.remounted",
    "node.repair.rebound",
    "node.found.recorded",
    "record.written",
    "record.renamed",
];

/// The process got this far.
#[inline]
pub fn step(name: &'static str) {
    #[cfg(debug_assertions)]
    die_if_asked(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
fn die_if_asked(name: &str) {
    debug_assert!(STEPS.contains(&name), "{name} is not in the list");
    let Some(file) = std::env::var_os("FUSEFS_CSI_KILL_FILE") else { return };
    let Ok(wanted) = std::fs::read_to_string(&file) else { return };
    if wanted.trim() == name && std::fs::remove_file(&file).is_ok() {
        // Nothing after this line runs: that is the point.
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_one_name_each() {
        let mut names = STEPS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), STEPS.len());
        step("record.written"); // nobody asked
    }
}
