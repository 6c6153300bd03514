//! Claim to verified I/O on two nodes, each kill once, total loss once, clean deletion.

use super::suite::{PATIENCE, Run};
use anyhow::{Context, Result, ensure};
use fusefs_chaos_tests::kube::{
    App, Part, Release, Use,
    apps::claim,
    cluster::{APPS, FUSE, name, text, until},
};

/// The whole smoke.
pub fn run(run: &mut Run<'_>, _: &mut Release<'_>) -> Result<()> {
    let c = run.cluster;
    run.step("claim, pods on both nodes");
    c.apply_json(&claim("shared", "fusefs", "ReadWriteMany", "1Gi"))?;
    let volume = Use { claim: "shared".into(), ..Use::default() };
    let (n1, n2) = (c.nodes[0].as_str(), c.nodes[1].as_str());
    let a = App::start(c, "app-a", n1, &volume, "app-b")?;
    let b = App::start(c, "app-b", n2, &volume, "app-a")?;
    let first = a.works(PATIENCE)?.max(b.works(PATIENCE)?);
    let apps = [&a, &b];
    run.fault("none", &apps, |_| Ok(format!("first verified I/O on both nodes {:.1} s after the claim", first.as_secs_f64())))?;
    for parts in [[Part::Plugin], [Part::Keeper], [Part::Worker], [Part::Supervisor]] {
        run.kill(n2, &parts, &apps)?;
    }
    if c.settings.runtime == "pod" {
        run.fault("deletion of the fuse pod", &apps, |r| delete_fuse_pod(r, &b.node))?;
    } else {
        run.kill(n2, &[Part::Mountd], &apps)?;
    }
    let driver = controller_node(run)?;
    run.kill(&driver, &[Part::Controller], &apps)?;
    run.total_loss(&b, &[&a])?;
    run.step("deletion");
    a.delete()?;
    b.delete()?;
    c.delete("persistentvolumeclaim", APPS, "shared")
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
pub fn delete_fuse_pod(run: &mut Run<'_>, node: &str) -> Result<String> {
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
