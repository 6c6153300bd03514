//! Claim to verified I/O on two nodes, each kill once, total loss once, clean deletion.

use super::suite::{PATIENCE, Run};
use anyhow::{Context, Result, ensure};
use fusefs_chaos_tests::kube::{
    App, Part, Use,
    apps::claim,
    cluster::{APPS, FUSE, name, text, until},
};

/// The claim that both pods use.
pub const CLAIM: &str = "shared";

/// A claim and a pod on each node.
pub fn start<'a>(run: &mut Run<'a>) -> Result<(App<'a>, App<'a>)> {
    let c = run.cluster;
    run.step("claim, pods on both nodes");
    c.apply_json(&claim(CLAIM, "fusefs", "ReadWriteMany", "1Gi"))?;
    let volume = Use { claim: CLAIM.into(), ..Use::default() };
    let began = std::time::Instant::now();
    let a = App::start(c, "app-a", &c.nodes[0], &volume, "app-b")?;
    let b = App::start(c, "app-b", &c.nodes[1], &volume, "app-a")?;
    a.works(PATIENCE)?;
    b.works(PATIENCE)?;
    let first = began.elapsed().as_secs_f64();
    run.fault("none", &[&a, &b], |_| Ok(format!("first verified I/O on both nodes {first:.1} s after the claim")))?;
    Ok((a, b))
}

/// Each kill once, on the node of the second pod.
pub fn kills<'a>(run: &mut Run<'a>, a: &App<'a>, b: &App<'a>) -> Result<()> {
    let apps = [a, b];
    for parts in [[Part::Plugin], [Part::Keeper], [Part::Worker], [Part::Supervisor]] {
        run.kill(&b.node, &parts, &apps)?;
    }
    if run.cluster.settings.runtime == "pod" {
        run.fault("deletion of the fuse pod", &apps, |r| delete_fuse_pods(r, &b.node))?;
    } else {
        run.kill(&b.node, &[Part::Mountd], &apps)?;
    }
    let node = controller_node(run)?;
    run.kill(&node, &[Part::Controller], &apps)
}

/// Deletes pods and claim.
pub fn end(run: &Run<'_>, apps: &[&App<'_>]) -> Result<()> {
    run.step("deletion");
    for app in apps {
        app.delete()?;
    }
    run.cluster.delete("persistentvolumeclaim", APPS, CLAIM)
}

/// A node on which a controller runs.
pub fn controller_node(run: &Run<'_>) -> Result<String> {
    for node in &run.cluster.nodes {
        if !run.agent.processes(node, &[Part::Controller])?.is_empty() {
            return Ok(node.clone());
        }
    }
    anyhow::bail!("no controller runs on {:?}", run.cluster.nodes)
}

/// Deletes the fuse pods of a node and waits for others.
pub fn delete_fuse_pods(run: &mut Run<'_>, node: &str) -> Result<String> {
    let c = run.cluster;
    let here = |c: &fusefs_chaos_tests::kube::Cluster| -> Result<Vec<(String, String, bool)>> {
        let pods = c.list("pods", Some(FUSE), "")?;
        let on = pods.iter().filter(|p| p["spec"]["nodeName"] == node);
        let ready = |p: &serde_json::Value| p["status"]["containerStatuses"][0]["ready"] == true;
        Ok(on.map(|p| (name(p), text(&p["metadata"]["uid"]), ready(p))).collect())
    };
    let old = here(c)?;
    ensure!(!old.is_empty(), "no fuse pod on {node}");
    for (pod, _, _) in &old {
        c.delete("pod", FUSE, pod)?;
    }
    let took = until("other fuse pods", PATIENCE, || {
        let now = here(c)?;
        Ok(now.len() == old.len() && now.iter().all(|(_, uid, ready)| *ready && old.iter().all(|(_, o, _)| o != uid)))
    })
    .context("the controller makes fuse pods anew")?;
    Ok(format!("{} pod, the next one is ready after {:.1} s", old.len(), took.as_secs_f64()))
}
