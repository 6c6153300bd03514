//! The binary `fusefs`: every role and every tool as a subcommand.

mod args;
mod bench;
mod cluster;
mod cmd;
mod resolve;
mod show;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    {
        if fusefs_csi_driver::node::helper::run_if_asked() {
            return ExitCode::SUCCESS;
        }
        if let Some(code) = cmd::keeper_process() {
            return code;
        }
    }
    end_quietly_when_nobody_reads();
    match command_line().and_then(cmd::run) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("fusefs: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The arguments; under the name `mount.fusefs` they come from mount(8).
fn command_line() -> anyhow::Result<args::Cli> {
    let args: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    let helper = args.first().is_some_and(|a| a.rsplit('/').next() == Some("mount.fusefs"));
    Ok(if helper { args::Cli::parse_from(cmd::from_mount_helper(&args[1..])?) } else { args::Cli::parse() })
}

/// `fusefs status | head` ends when head does: a closed pipe is no panic.
fn end_quietly_when_nobody_reads() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info
            .payload_as_str()
            .is_some_and(|m| m.starts_with("failed printing to stdout") && m.contains("Broken pipe"))
        {
            std::process::exit(0);
        }
        usual(info);
    }));
}
