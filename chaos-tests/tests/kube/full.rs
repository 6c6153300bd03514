//! Everything else: kinds of volumes, pairs of kills, leaders, upgrades, power cut, many pods.

use super::{
    smoke::{CLAIM, delete_fuse_pods},
    suite::{PATIENCE, Run},
};
use anyhow::{Context, Result, ensure};
use fusefs_chaos_tests::kube::{
    App, Part, Release, Use,
    apps::{claim, ended, pod},
    cluster::{APPS, Cluster, RELEASE, condition, name, text, until},
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Pods that are created and deleted on one volume, and how many at a time.
const PODS: usize = 200;
const BATCH: usize = 20;
const WRITE: &str =
    "set -e; echo $HOSTNAME >/data/$HOSTNAME; sync /data/$HOSTNAME; [ $(cat /data/$HOSTNAME) = $HOSTNAME ]";

/// All of it, while the two applications work.
pub fn run<'a>(run: &mut Run<'a>, release: &mut Release<'a>, a: &App<'a>, b: &App<'a>) -> Result<()> {
    let apps = [a, b];
    run.fault("RWO hand-over between nodes", &apps, |r| hand_over(r.cluster))?;
    run.fault("online expand", &apps, |r| expand(r.cluster, b))?;
    run.fault("read-only, subPath, ephemeral volume, static PV of a directory", &apps, |r| kinds(r))?;
    for (what, of) in [("csi-node", "node plugin"), ("keeper", "node keeper")] {
        run.fault(&format!("deletion of the pod of the {of}"), &apps, |r| delete_pod(r.cluster, what, &b.node))?;
    }
    for pair in [[Part::Plugin, Part::Keeper], [Part::Plugin, Part::Supervisor], [Part::Keeper, Part::Supervisor]] {
        run.kill(&b.node, &pair, &apps)?;
    }
    run.kill(&b.node, &[Part::Kubelet], &apps)?;
    for role in ["metanode", "master"] {
        for i in (0..3).cycle().take(3 * run.cluster.settings.rounds) {
            run.fault(&format!("deletion of {role} {i}"), &apps, |r| delete_server(r.cluster, role, i))?;
        }
    }
    let next = run.cluster.settings.image_next.clone();
    run.fault("rolling upgrade of everything", &apps, |r| upgrade(r, release, &next))?;
    power_cut(run, a, b)?;
    run.fault(&format!("{PODS} pods created and deleted"), &apps, |r| many(r.cluster))
}

fn command(script: &str) -> [&str; 3] {
    ["bash", "-c", script]
}

/// A pod that runs a script to its end.
fn once(c: &Cluster, name: &str, node: &str, volume: &Use, script: &str) -> Result<()> {
    let mut object = pod(c, name, node, volume, &command(script));
    object["spec"]["restartPolicy"] = json!("Never");
    c.apply_json(&object)
}

fn gone(c: &Cluster, kind: &str, name: &str) -> Result<Duration> {
    c.delete(kind, APPS, name)?;
    until(&format!("end of {kind} {name}"), PATIENCE, || Ok(c.get(kind, APPS, name)?.is_none()))
}

fn hand_over(c: &Cluster) -> Result<String> {
    c.apply_json(&claim("single", "fusefs", "ReadWriteOnce", "100Mi"))?;
    let volume = Use { claim: "single".into(), ..Use::default() };
    let first = App::start(c, "single-a", &c.nodes[0], &volume, "")?;
    first.works(PATIENCE)?;
    let script = "[ $(head -c 3 /data/single-a/log.0 | tr -d '\\n ') = 1a ] && wc -l </data/single-a/log.0";
    once(c, "single-b", &c.nodes[1], &volume, script)?;
    let refused = || {
        let events = c.run(&["get", "events", "-n", APPS, "--field-selector", "involvedObject.name=single-b"])?;
        Ok(events.contains("Multi-Attach"))
    };
    until("refusal of a second node", PATIENCE, refused)?;
    let began = Instant::now();
    first.delete()?;
    ended(c, "single-b", PATIENCE)?;
    let took = began.elapsed().as_secs_f64();
    gone(c, "pod", "single-b")?;
    gone(c, "persistentvolumeclaim", "single")?;
    Ok(format!("second node refused while the first writes; {took:.1} s from deletion there to all data read here"))
}

fn expand(c: &Cluster, b: &App<'_>) -> Result<String> {
    let patch = json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}}).to_string();
    c.run(&["patch", "persistentvolumeclaim", CLAIM, "-n", APPS, "--type=merge", "-p", &patch])?;
    let grown = || {
        let df = c.exec(APPS, &b.name, "", &["df", "--output=size", "-B1", "/data"])?;
        let claim = c.get("persistentvolumeclaim", APPS, CLAIM)?.context("claim")?;
        let size = df.lines().last().and_then(|l| l.trim().parse::<u64>().ok()).unwrap_or(0);
        Ok(claim["status"]["capacity"]["storage"] == "3Gi" && size == 3 << 30)
    };
    let took = until("3 GiB in claim and pod", PATIENCE, grown)?;
    Ok(format!("1 to 3 GiB, seen in the pod after {:.1} s", took.as_secs_f64()))
}

fn kinds(r: &mut Run<'_>) -> Result<String> {
    let c = r.cluster;
    let shared = Use { claim: CLAIM.into(), ..Use::default() };
    let mut read_only = pod(
        c,
        "ro",
        &c.nodes[1],
        &shared,
        &command("[ -s /data/app-a/log.0 ] || exit 2; ! : 2>/tmp/e >/data/x || exit 3; grep -q Read-only /tmp/e"),
    );
    read_only["spec"]["restartPolicy"] = json!("Never");
    read_only["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] = json!(true);
    c.apply_json(&read_only)?;
    let sub = Use { sub_path: "sub/dir".into(), ..shared };
    let sub = App::start(c, "sub", &c.nodes[1], &sub, "")?;
    let own = Use { ephemeral: Some(("fusefs".into(), "50Mi".into())), ..Use::default() };
    let own = App::start(c, "own", &c.nodes[1], &own, "")?;
    let volume = text(&c.get("persistentvolumeclaim", APPS, CLAIM)?.context("claim")?["spec"]["volumeName"]);
    static_volume(c, &volume)?;
    let part = Use { claim: "part".into(), ..Use::default() };
    let see = "[ -s /data/log.0 ] && echo here >/data/from-part";
    once(c, "part", &c.nodes[0], &part, see)?;
    ended(c, "ro", PATIENCE)?;
    ended(c, "part", PATIENCE)?;
    let apps = [&sub, &own];
    sub.works(PATIENCE)?;
    own.works(PATIENCE)?;
    r.kill(&c.nodes[1], &[Part::Worker], &apps)?;
    for app in apps {
        gone(c, "pod", &app.name)?;
    }
    for one in ["ro", "part"] {
        gone(c, "pod", one)?;
    }
    gone(c, "persistentvolumeclaim", "part")?;
    c.delete("persistentvolume", "", "part")?;
    until("end of the ephemeral claim", PATIENCE, || Ok(c.get("persistentvolumeclaim", APPS, "own-data")?.is_none()))?;
    Ok("each once; workers of two more volumes killed".into())
}

/// A volume that is a directory of another one.
fn static_volume(c: &Cluster, of: &str) -> Result<()> {
    let of = c.get("persistentvolume", "", of)?.context("volume")?;
    let handle = format!("{}/app-a", text(&of["spec"]["csi"]["volumeHandle"]));
    c.apply_json(&json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "part"},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": APPS, "name": "part"},
            "csi": {"driver": "csi.fusefs.io", "volumeHandle": handle},
        },
    }))?;
    let mut part = claim("part", "", "ReadWriteMany", "1Gi");
    part["spec"]["volumeName"] = json!("part");
    c.apply_json(&part)
}

/// Pods of a component of the release.
fn pods(c: &Cluster, component: &str) -> Result<Vec<Value>> {
    c.list("pods", Some(RELEASE), &format!("app.kubernetes.io/component={component}"))
}

fn replaced(c: &Cluster, component: &str, node: &str, old: &str) -> Result<Duration> {
    until(&format!("another {component} on {node}"), PATIENCE, || {
        let here = |p: &&Value| p["spec"]["nodeName"] == node && text(&p["metadata"]["uid"]) != old;
        Ok(pods(c, component)?.iter().find(here).is_some_and(|p| condition(p, "Ready")))
    })
}

fn delete_pod(c: &Cluster, component: &str, node: &str) -> Result<String> {
    let old = pods(c, component)?.into_iter().find(|p| p["spec"]["nodeName"] == node);
    let old = old.with_context(|| format!("{component} on {node}"))?;
    c.delete("pod", RELEASE, &name(&old))?;
    let took = replaced(c, component, node, &text(&old["metadata"]["uid"]))?;
    Ok(format!("the next one is ready after {:.1} s", took.as_secs_f64()))
}

fn delete_server(c: &Cluster, role: &str, i: usize) -> Result<String> {
    let pod = format!("fs-{role}-{i}");
    let uid = text(&c.get("pod", RELEASE, &pod)?.context("server")?["metadata"]["uid"]);
    c.run(&["delete", "pod", &pod, "-n", RELEASE, "--grace-period=0", "--force"])?;
    let took = until(&format!("{pod} again"), PATIENCE, || {
        Ok(c.get("pod", RELEASE, &pod)?.is_some_and(|p| text(&p["metadata"]["uid"]) != uid && condition(&p, "Ready")))
    })?;
    Ok(format!("forced; ready again after {:.1} s", took.as_secs_f64()))
}

/// Servers, controller and plugins roll by themselves; keepers, mount daemons and fuse pods are replaced one by one.
fn upgrade<'a>(r: &mut Run<'a>, release: &mut Release<'a>, image: &str) -> Result<String> {
    let began = Instant::now();
    release.upgrade(image)?;
    release.ready(PATIENCE * 3)?;
    let c = r.cluster;
    for node in &c.nodes {
        let by_hand: &[&str] = if c.settings.runtime == "pod" { &["keeper"] } else { &["keeper", "mountd"] };
        for component in by_hand {
            delete_pod(c, component, node)?;
        }
        if c.settings.runtime == "pod" {
            delete_fuse_pods(r, node)?;
        }
    }
    let all = c.list("pods", Some(RELEASE), "app.kubernetes.io/part-of=fusefs")?;
    let jobs = |p: &&Value| p["metadata"]["labels"]["app.kubernetes.io/component"] != "store";
    let old: Vec<String> = all.iter().filter(jobs).filter(|p| !p.to_string().contains(image)).map(name).collect();
    ensure!(old.is_empty(), "still of the old image: {old:?}");
    Ok(format!("{} workloads in {:.0} s", release.workloads()?.len(), began.elapsed().as_secs_f64()))
}

fn power_cut<'a>(run: &mut Run<'a>, a: &App<'a>, b: &App<'a>) -> Result<()> {
    let Some(reboot) = run.cluster.settings.reboot.clone() else {
        println!("SKIPPED power cut: FUSEFS_KUBE_NODE_REBOOT is not set (a command that cuts the power of {{node}})");
        return Ok(());
    };
    if !run.wanted("power cut") {
        return Ok(());
    }
    run.step("power cut");
    let marks = run.marks(&[a])?;
    let mark = b.mark()?;
    let began = Instant::now();
    let status = std::process::Command::new("sh").args(["-c", &reboot.replace("{node}", &b.node)]).status()?;
    ensure!(status.success(), "{reboot}: {status}");
    run.cluster.rolled_out(APPS, "daemonset/agent", PATIENCE)?;
    run.agent.find()?;
    b.progress(&mark, 5, PATIENCE * 2).with_context(|| b.trouble(&mark))?;
    let took = began.elapsed().as_secs_f64();
    let note = format!("pod there writes again after {took:.1} s unattended, synced data intact; other node:");
    run.judge("power cut of a node", 1, &[a], &marks, &note)
}

fn many(c: &Cluster) -> Result<String> {
    let began = Instant::now();
    let volume = Use { claim: CLAIM.into(), ..Use::default() };
    for batch in 0..PODS / BATCH {
        let names: Vec<String> = (0..BATCH).map(|i| format!("many-{}", batch * BATCH + i)).collect();
        let mut objects = vec![];
        for (i, name) in names.iter().enumerate() {
            let mut object = pod(c, name, &c.nodes[i % 2], &volume, &command(WRITE));
            object["spec"]["restartPolicy"] = json!("Never");
            object["metadata"]["labels"] = json!({"app": "many"});
            objects.push(object);
        }
        c.apply_json(&json!({"apiVersion": "v1", "kind": "List", "items": objects}))?;
        until("pods of a batch", PATIENCE * 2, || {
            let pods = c.list("pods", Some(APPS), "app=many")?;
            let failed: Vec<String> = pods.iter().filter(|p| p["status"]["phase"] == "Failed").map(name).collect();
            ensure!(failed.is_empty(), "failed: {failed:?}");
            Ok(pods.iter().filter(|p| p["status"]["phase"] == "Succeeded").count() == BATCH)
        })?;
        c.run(&["delete", "pods", "-n", APPS, "-l", "app=many", "--timeout=110s"])?;
    }
    Ok(format!("{BATCH} at a time, {:.0} s", began.elapsed().as_secs_f64()))
}
